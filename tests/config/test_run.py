"""Test that the configuration in a run directory reproduces the run byte for byte."""

from __future__ import annotations

import json
import pathlib
import shutil
import warnings
from typing import Any

import pytest
import torch

from ftrain.checkpoint import Store
from ftrain.config import ConfigError, load
from ftrain.config._environment import environment
from ftrain.config.build import build
from ftrain.config.run import prepare, store, train
from tests.config.formats import write

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def project(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a user's directory: a configuration and the files that it names."""
    source = (HERE / "project.py").read_text().replace('@register("model", "test-net")\n', "")
    (tmp_path / "project.py").write_text(source)
    config = {
        "model": {"name": "project.py:Net", "dropout": 0.2},
        "data": {"name": "project.py:data", "held_out": 0.25, "path": "project.py"},
        "epochs": 3,
        "batch_size": 4,
        "schedule": "cosine",
        "compile": False,
        "log_every": 2,
        "progress": False,
    }
    (tmp_path / "tiny.yaml").write_text(write(config, "yaml"))
    return tmp_path


def tensors(folder: pathlib.Path) -> bytes:
    """Return the bytes of the newest checkpoint."""
    newest = Store(folder / "checkpoints").latest()
    assert newest is not None
    return b"".join(path.read_bytes() for path in sorted(newest.glob("*.safetensors")))


def manifest(folder: pathlib.Path) -> Any:
    newest = Store(folder / "checkpoints").latest()
    assert newest is not None
    return (newest / "manifest.json").read_bytes()


def run(project: pathlib.Path, name: str, *overrides: str, **options: Any) -> pathlib.Path:
    folder = project / "runs" / name
    train(load(project / "tiny.yaml", [*overrides, f"output_dir={folder}"]), **options)
    return folder


def test_saved_configuration_repeats_the_run_bit_for_bit(project: pathlib.Path) -> None:
    first = run(project, "first", "seed=3")
    second = project / "deeper" / "still" / "second"
    train(load(first / "config.yaml", [f"output_dir={second}"]))
    assert tensors(first) == tensors(second)
    assert manifest(first) == manifest(second)
    third = run(project, "third", "seed=4")
    assert tensors(first) != tensors(third)


def test_retraining_from_a_saved_configuration_leaves_the_file_unchanged(
    project: pathlib.Path,
) -> None:
    folder = run(project, "run")
    before = (folder / "config.yaml").read_bytes()
    train(load(folder / "config.yaml"), overwrite=True)
    assert (folder / "config.yaml").read_bytes() == before


def test_run_of_a_moved_project_trains_to_the_same_bytes(
    project: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = run(project, "run")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "project"
    shutil.copytree(project, elsewhere)
    (project / "project.py").unlink()
    moved = elsewhere / "runs" / "run"
    train(load(moved / "config.yaml", [f"output_dir={moved}"]), overwrite=True)
    assert tensors(folder) == tensors(moved)


def test_relative_path_is_searched_beside_the_file_or_in_the_current_directory(
    project: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path in a file is relative to the file; on the command line, to the current directory."""
    here = project / "here"
    here.mkdir()
    (here / "other.py").write_text((project / "project.py").read_text())
    monkeypatch.chdir(here)
    beside = run(project, "beside")  # project.py:Net of the file
    typed = run(project, "typed", "model.name=other.py:Net", "data.path=other.py")
    assert tensors(beside) == tensors(typed)
    saved = load(typed / "config.yaml")
    assert saved.model.name == "../../here/other.py:Net"
    assert saved.data.name == "../../project.py:data"
    assert saved.data.arguments["path"] == "../../here/other.py"
    monkeypatch.chdir(project)
    train(load(typed / "config.yaml", [f"output_dir={typed}", "epochs=4"]), resume=True)


def test_error_for_a_missing_path_contains_the_searched_directory(
    project: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(
        ConfigError, match=r"path 'no.csv' was searched in the current directory, bec"
    ):
        run(project, "run", "data.path=no.csv")
    text = (project / "tiny.yaml").read_text().replace("path: project.py", "path: no.csv")
    (project / "tiny.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"path 'no.csv' was searched beside .*tiny.yaml"):
        run(project, "run")
    with pytest.raises(
        ConfigError, match=r"written as no.py\). A relative path is searched beside"
    ):
        run(project, "run", "model.name=no.py:Net")


def test_resumed_run_has_the_bytes_of_an_uninterrupted_run(project: pathlib.Path) -> None:
    whole = run(project, "whole", "schedule=null")
    part = run(project, "part", "schedule=null", "max_steps=5")
    train(load(part / "config.yaml", ["max_steps=null", f"output_dir={part}"]), resume=True)
    assert tensors(whole) == tensors(part)


def test_run_directory_is_overwritten_only_on_request(project: pathlib.Path) -> None:
    folder = run(project, "run")
    before = tensors(folder)
    with pytest.raises(ConfigError, match="which holds a run") as error:
        run(project, "run", "seed=9")
    assert error.value.key == "output_dir"
    assert f"ftrain resume {folder}" in str(error.value)
    assert tensors(folder) == before
    (folder / "notes.txt").write_text("mine")
    run(project, "run", "seed=9", overwrite=True)
    assert tensors(folder) != before
    assert (folder / "notes.txt").read_text() == "mine"


def test_second_process_in_a_run_directory_is_refused(project: pathlib.Path) -> None:
    folder = run(project, "run")
    before = tensors(folder)
    config = load(folder / "config.yaml", [f"output_dir={folder}"])
    with prepare(config, resume=True):
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match="another process is training in"):
                train(config, **options)
    assert tensors(folder) == before
    train(config, resume=True)  # the lock is gone


def test_run_directory_that_cannot_be_created_is_refused(project: pathlib.Path) -> None:
    (project / "runs").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be created") as error:
        run(project, "run")
    assert error.value.key == "output_dir"


@pytest.mark.parametrize("name", ["x" * 300, r"a\0b"])
def test_invalid_name_of_a_run_directory_is_refused(project: pathlib.Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be created") as error:
        train(load(project / "tiny.yaml", [f'output_dir="runs/{name}"']))
    assert error.value.key == "output_dir"


def test_run_completed_by_a_faster_process_is_not_deleted(
    project: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process completes its run while the other, started at once, is still building."""
    began: list[pathlib.Path] = []

    def slow(*arguments: Any, **options: Any) -> Any:
        if not began:
            began.append(project / "runs" / "run")
            run(project, "run")
        return build(*arguments, **options)

    monkeypatch.setattr("ftrain.config.run.build", slow)
    with pytest.raises(ConfigError, match="which holds a run"):
        run(project, "run", "seed=9")
    assert "seed: 0" in (began[0] / "config.yaml").read_text()
    assert Store(began[0] / "checkpoints").latest() is not None


def test_train_writes_nothing_if_the_configuration_is_invalid(project: pathlib.Path) -> None:
    with pytest.raises(ConfigError):
        run(project, "run", "model.width=x")
    with pytest.raises(ConfigError, match="batch_size: expected at most 18, the number of samples"):
        run(project, "run", "batch_size=1000")
    assert not (project / "runs").exists()


def test_result_json_contains_the_outcome(project: pathlib.Path) -> None:
    folder = run(project, "run")
    found = json.loads((folder / "result.json").read_text())
    assert (found["status"], found["step"], found["epoch"]) == ("completed", 12, 3)


def test_result_json_contains_the_failure(project: pathlib.Path) -> None:
    (project / "fails.py").write_text("def loss_fn(model, batch):\n    return model(batch['z'])\n")
    with pytest.raises(KeyError, match="z"):
        run(project, "run", f"loss={project}/fails.py:loss_fn")
    found = json.loads((project / "runs" / "run" / "result.json").read_text())
    assert (found["status"], found["step"]) == ("failed", 0)
    assert found["error"].startswith("KeyError")


def test_fast_dev_run_leaves_no_directory(project: pathlib.Path) -> None:
    result = train(
        load(project / "tiny.yaml", ["fast_dev_run=true", f"output_dir={project / 'runs'}"])
    )
    assert (result.step, result.status) == (4, "completed")
    assert result.eval is not None
    assert not (project / "runs").exists()


def test_overfit_batches_trains_to_a_small_loss(project: pathlib.Path) -> None:
    options = ["overfit_batches=2", "epochs=60", "model.dropout=0", "schedule=null"]
    rate = "optimizer.learning_rate=0.05"
    result = train(load(project / "tiny.yaml", [*options, rate, f"output_dir={project / 'run'}"]))
    assert result.eval is not None
    assert result.eval.loss < 0.05


def test_early_stopping_ends_the_run_and_keeps_the_best_checkpoint(project: pathlib.Path) -> None:
    options = ["epochs=50", "schedule=null", "optimizer={name: sgd, learning_rate: 0.5}"]
    folder = run(project, "run", *options, "early_stopping.patience=2", "checkpoint.keep_last=1")
    found = json.loads((folder / "result.json").read_text())
    losses = [each["metrics"]["loss"] for each in found["history"] if each["split"] == "eval"]
    assert found["status"] == ("stopped" if len(losses) < 50 else "completed")
    if found["status"] == "stopped":
        assert min(losses) == losses[-3]
    best = store(load(folder / "config.yaml"), folder).best()
    assert best is not None
    steps = [each["step"] for each in found["history"] if each["split"] == "eval"]
    assert int(best.name.partition("-")[2]) == steps[losses.index(min(losses))]


def test_unknown_monitored_metric_is_refused(project: pathlib.Path) -> None:
    with pytest.raises(
        ConfigError, match="expected held-out data for eval/loss, got none"
    ) as error:
        run(project, "run", "data.held_out=null", "early_stopping.patience=2")
    assert error.value.key == "early_stopping.monitor"
    with pytest.raises(ConfigError, match="Did you mean 'eval/loss'") as error:
        run(project, "run", "early_stopping={patience: 2, monitor: loss}")
    assert not (project / "runs").exists()
    with pytest.raises(ConfigError, match="Did you mean 'eval/loss'") as error:
        run(project, "typo", "early_stopping={patience: 2, monitor: eval/lose}")
    assert error.value.key == "early_stopping.monitor"
    assert "the command line" in error.value.place
    train(load(project / "tiny.yaml", ["data.held_out=null", f"output_dir={project / 'run'}"]))


def test_run_with_ema_evaluates_the_averaged_weights_as_well(project: pathlib.Path) -> None:
    plain, averaged = run(project, "plain"), run(project, "averaged", "ema=0.9")
    rows = [json.loads(line) for line in (averaged / "metrics.jsonl").read_text().splitlines()]
    assert all("ema/loss" in row for row in rows if row["split"] == "eval")
    last = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()][-1]
    assert rows[-1]["loss"] == last["loss"]


def test_callbacks_are_built_by_name_and_import_path(project: pathlib.Path) -> None:
    (project / "own.py").write_text(
        "class Seen:\n"
        "    def __init__(self, folder): self.folder = folder\n"
        "    def on_epoch_end(self, event): open(self.folder + '/seen', 'a').write('.')\n"
    )
    folder = run(
        project,
        "run",
        f"callbacks=[GradientMonitor, {{name: {project}/own.py:Seen, folder: '${{run}}'}}]",
    )
    assert (folder / "seen").read_text() == "..."
    assert '"grad_norm/layers.0"' in (folder / "metrics.jsonl").read_text()


def test_detect_anomaly_names_the_operation_that_returned_nan(project: pathlib.Path) -> None:
    (project / "nan.py").write_text(
        "import torch\ndef loss_fn(model, batch):\n    return (model(batch['x']) * 0).sqrt().sum()\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="returned nan values") as error:
            run(project, "run", "detect_anomaly=true", f"loss={project}/nan.py:loss_fn")
    assert "MulBackward0" in str(error.value)


def test_torch_settings_are_restored_after_a_run(project: pathlib.Path) -> None:
    before = torch.get_num_threads()
    with environment(load(project / "tiny.yaml", [f"threads={before + 1}"])):
        assert torch.get_num_threads() == before + 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_run_directory_defaults_to_the_name_of_the_file(project: pathlib.Path) -> None:
    assert load(project / "tiny.yaml").folder == pathlib.Path("runs/tiny")
    assert load({"model": "mlp", "data": "digits", "epochs": 1}).folder == pathlib.Path("runs/run")
