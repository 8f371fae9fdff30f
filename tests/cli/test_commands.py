"""Test the output, files and exit code of each command."""

from __future__ import annotations

import json
import pathlib
import re
import sys
import types

import pytest

from ftrain.cli import main
from ftrain.cli.commands import COMMANDS
from ftrain.config import load
from ftrain.config.folders import run_config


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Return the current directory of the commands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def project(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> pathlib.Path:
    """Return the directory after `ftrain init`, with fewer epochs."""
    assert main(["init"]) == 0
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"(?m)^epochs: .*$", "epochs: 2", config))
    capsys.readouterr()
    return folder


@pytest.fixture(autouse=True)
def _own_modules(folder: pathlib.Path) -> object:
    """Unload the modules that a test imported, because the next test has another `model.py`."""
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    sys.path[:] = path


Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(arguments: list[str], capsys: Captured) -> None:
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)


def test_command_line_without_a_command_prints_help_and_fails(capsys: Captured) -> None:
    assert main([]) == 2
    assert "ftrain init" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_shows_its_usage(name: str, capsys: Captured) -> None:
    assert main([name, "--help"]) == 0
    assert f"usage: ftrain {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "ftrain: unknown command trian. Did you mean train?"),
        (["--trian"], "unknown option --trian"),
        (["train"], "the following arguments are required: config"),
        (["train", "none.yaml"], "none.yaml: file not found. Write one with `ftrain init`"),
        (["train", "none.yaml", "--fast"], "none.yaml"),
        (["resume", "none"], "none: directory not found. Make one with `ftrain train CONFIG`"),
        (["eval", "."], "expected a run, got no config.yaml"),
    ],
)
def test_invalid_command_exits_with_2_and_a_message_without_traceback(
    arguments: list[str], said: str, folder: pathlib.Path, capsys: Captured
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert not printed.out


def test_init_writes_files_that_train_unchanged(folder: pathlib.Path, capsys: Captured) -> None:
    assert main(["init"]) == 0
    assert main(["train", "config.yaml"]) == 0
    said = capsys.readouterr().out
    assert "completed at step 500, epoch 20" in said
    run = folder / "runs" / "config"
    files = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert files == {
        "config.yaml",
        "metrics.jsonl",
        "metrics.csv",
        "train.log",
        "checkpoints",
        "curves.png",
        "result.json",
    }
    found = json.loads((run / "result.json").read_text())
    # Measured with seeds 0 to 4: 0.99 to 1.0.
    assert found["history"][-1]["metrics"]["accuracy"] > 0.95
    config = load(folder / "config.yaml")
    assert config.model.name == "model.py:Net"


def test_init_refuses_to_overwrite_files(folder: pathlib.Path, capsys: Captured) -> None:
    (folder / "model.py").write_text("mine")
    assert main(["init"]) == 1
    assert "model.py exist already" in capsys.readouterr().err
    assert (folder / "model.py").read_text() == "mine"
    assert not (folder / "config.yaml").exists()
    assert main(["init", "other"]) == 0
    assert (folder / "other" / "config.yaml").exists()


def test_commands_train_resume_evaluate_and_list_a_run(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "epochs=1", "--overwrite", "seed=1"]) == 0
    assert "run: runs/config" in capsys.readouterr().out
    assert main(["train", "config.yaml"]) == 2
    assert "ftrain resume runs/config" in capsys.readouterr().err
    assert main(["resume", "runs/config", "epochs=2"]) == 0
    assert "completed at step 50, epoch 2" in capsys.readouterr().out
    assert main(["resume", "runs/config"]) == 0  # the run is complete already
    assert "completed at step 50" in capsys.readouterr().out

    for checkpoint in ("best", "latest", "step-000000000025"):
        assert main(["eval", "runs/config", "--checkpoint", checkpoint, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["split"], found["samples"]) == ("eval", 400)
    assert found["step"] == 25

    assert main(["train", "config.yaml", "output_dir=runs/other", "max_steps=3"]) == 0
    capsys.readouterr()
    assert main(["runs"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["run", "status", "step"]
    assert [row.split()[:3] for row in rows] == [
        ["config", "completed", "50"],
        ["other", "completed", "3"],
    ]
    assert main(["runs", "--sort", "step"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("other")
    assert main(["runs", "--sort", "eval/los"]) == 2
    assert "unknown column eval/los. Did you mean eval/loss?" in capsys.readouterr().err


def test_plot_command_draws_one_or_several_runs(project: pathlib.Path, capsys: Captured) -> None:
    for name in ("first", "second"):
        assert main(["train", "config.yaml", f"output_dir=runs/{name}", "epochs=1"]) == 0
    (project / "runs/first/curves.png").unlink()
    capsys.readouterr()
    assert main(["plot", "runs/first"]) == 0
    assert capsys.readouterr().out == "runs/first/curves.png\n"
    assert main(["plot", "runs/first", "runs/second", "--metric", "loss", "--dark"]) == 0
    assert (project / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "runs/first", "runs/second", "--out", "page.html"]) == 0
    page = (project / "page.html").read_text()
    assert "first" in page
    assert not re.search(r"(src|href)=.https?:", page)  # the page loads no other file
    assert main(["plot", "runs/first", "--metric", "los"]) == 1
    assert "'los'" in capsys.readouterr().err


def test_lr_find_suggests_a_rate_and_keeps_only_the_plot(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["lr-find", "config.yaml", "--steps", "60", "seed=2"]) == 0
    said = capsys.readouterr().out
    assert "suggested learning rate" in said
    assert (project / "runs/config/lr_find.png").read_bytes().startswith(b"\x89PNG")
    command = said.splitlines()[-1].removeprefix("use it: ftrain ").split()
    assert command[:3] == ["train", "config.yaml", "seed=2"]
    assert 1e-4 < float(command[-1].partition("=")[2]) < 1
    assert main([*command, "max_steps=1"]) == 0  # a directory with a picture alone holds no run


def test_unknown_run_argument_lists_the_existing_runs(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "max_steps=1"]) == 0
    capsys.readouterr()
    assert main(["resume", "runs/confg"]) == 2
    assert "Choose one of runs/config" in capsys.readouterr().err


def test_config_command_prints_the_resolved_configuration(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["config", "config.yaml", "epochs=7"]) == 0
    text = capsys.readouterr().out
    (project / "printed.yaml").write_text(text)
    assert (
        load(project / "printed.yaml").model_dump()
        == load(project / "config.yaml", ["epochs=7"]).model_dump()
    )
    assert main(["config", "config.yaml", "model.widht=7"]) == 2
    assert "Did you mean width?" in capsys.readouterr().err


def test_config_command_without_a_file_lists_keys_and_names(capsys: Captured) -> None:
    assert main(["config"]) == 0
    said = capsys.readouterr().out
    assert "\ncheckpoint.keep_last: 3\n" in said
    assert main(["config", "--names"]) == 0
    assert "adamw" in capsys.readouterr().out


def test_dry_run_prints_requirements_without_training(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "--dry-run"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["parameters"] in ("4,482 in 6 tensors", "17.5 KiB")
    assert rows["batch"] == "x float32 (64, 2), y int64 (64,)"
    assert rows["steps"] == "50, 2 epochs of 25"
    # The forward pass has 2 (2 64 + 64 64 + 64 2) FLOPs per row; the backward pass has twice as many,
    # without the gradient of the input.
    forward = 2 * 64 * (2 * 64 + 64 * 64 + 64 * 2)
    assert rows["FLOPs"].startswith(f"{(3 * forward - 2 * 64 * 2 * 64) / 1e6:.3g} million a step")
    assert not (project / "runs").exists()


def test_dry_run_with_a_world_size_prints_the_traffic_of_one_rank(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "--dry-run", "--world-size", "16"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["batch"] == "x float32 (4, 2), y int64 (4,)"
    # A ring all-reduce sends 4,482 gradients, and less than 2 KiB for the weight and the metrics.
    gradients = 2 * 15 / 16 * 4 * 4482 / 1024
    assert (
        gradients
        <= float(rows["traffic"].split(" KiB sent by each rank a step")[0])
        < gradients + 2
    )
    sharded = "distributed.strategy=fully_sharded"
    assert main(["train", "config.yaml", "--dry-run", "--world-size", "2", sharded]) == 0
    rows = dict(line.strip().split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["ranks"].startswith("2, fully_sharded; ")
    assert rows["parameters"].startswith(f"{4 * 4482 / 2 / 1024:.3g} KiB")
    # Units of the two larger layers; the backward pass gathers their parameters again.
    assert float(rows["gathered"].split(" KiB")[0]) == pytest.approx(
        2 * 4 * 64 * 65 / 1024, rel=5e-3
    )
    hybrid = [sharded, "distributed.mesh=[-1, 2]"]
    assert main(["train", "config.yaml", "--dry-run", "--world-size", "8", *hybrid]) == 0
    on_mesh = dict(line.strip().split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert on_mesh["ranks"].startswith("8, fully_sharded on a mesh of -1 x 2; ")
    assert [on_mesh[name] for name in ("parameters", "gathered")] == [
        rows[name] for name in ("parameters", "gathered")
    ]
    assert main(["train", "config.yaml", "--world-size", "16"]) == 2
    assert "expected a number above 0 with --dry-run, got 16 without" in capsys.readouterr().err


def test_fast_dev_run_leaves_no_run_directory(project: pathlib.Path, capsys: Captured) -> None:
    assert main(["train", "config.yaml", "--fast-dev-run"]) == 0
    assert "the trial run completed; no files were kept" in capsys.readouterr().out
    assert not (project / "runs").exists()


def test_train_flags_are_saved_in_the_configuration(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "--overfit-batches", "1", "--detect-anomaly"]) == 0
    saved = load(project / "runs" / "config" / "config.yaml")
    assert (saved.overfit_batches, saved.detect_anomaly) == (1, True)


def test_command_line_options_are_accepted_before_and_after_overrides(
    project: pathlib.Path,
) -> None:
    assert main(["train", "--fast-dev-run", "config.yaml", "seed=1"]) == 0
    assert main(["train", "config.yaml", "seed=1", "--fast-dev-run", "epochs=1"]) == 0


def test_error_in_user_code_prints_only_the_users_stack_frames(
    project: pathlib.Path, capsys: Captured
) -> None:
    whole = (project / "model.py").read_text()
    (project / "model.py").write_text(whole.replace("self.layers(x)", "self.layrs(x)"))
    assert main(["train", "config.yaml"]) == 1
    said = capsys.readouterr().err
    line = whole[: whole.index("self.layers(x)")].count("\n") + 1
    assert f'model.py", line {line}, in forward' in said
    assert said.count("File ") == 1
    assert "has no attribute 'layrs'" in said
    assert "while computing `cross_entropy`" in said
    # The output directory of a run that failed before its first step may be used again.
    assert main(["train", "config.yaml", "--traceback"]) == 1
    assert capsys.readouterr().err.count("File ") > 10


def test_error_in_a_model_constructor_names_the_config_key_and_the_users_line(
    project: pathlib.Path, capsys: Captured
) -> None:
    whole = (project / "model.py").read_text()
    (project / "model.py").write_text(whole.replace("super().__init__()", "super().__init__(3)"))
    assert main(["train", "config.yaml"]) == 2
    said = capsys.readouterr().err
    assert "super().__init__(3)" in said
    line = (project / "config.yaml").read_text().splitlines().index("model:") + 1
    assert f"config.yaml:{line}: model: model.py:Net raised TypeError" in said


def test_damaged_checkpoint_is_reported_without_a_traceback(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "max_steps=2"]) == 0
    (path,) = (project / "runs/config/checkpoints").glob("step-*/*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    capsys.readouterr()
    assert main(["eval", "runs/config", "--checkpoint", path.parent.name]) == 1
    said = capsys.readouterr().err
    assert path.name in said
    assert "Traceback" not in said


def test_keyboard_interrupt_outside_a_run_exits_with_130(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    module = types.SimpleNamespace(__doc__="", arguments=lambda parser: None, run=interrupted)
    monkeypatch.setitem(sys.modules, "ftrain.cli.commands.runs", module)
    assert main(["runs"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "name", ["runs/\U0001f600", "runs/a b#c: 'd'\"", "runs/" + 40 * "long " + "x", "runs/nl\n\x85x"]
)
def test_run_directory_may_have_any_name(project: pathlib.Path, name: str) -> None:
    (project / name).mkdir(parents=True)
    (project / name / "config.yaml").write_text("{model: mlp, data: digits, epochs: 1}")
    assert run_config(pathlib.Path(name), []).folder == pathlib.Path(name)


def test_runs_command_lists_runs_despite_damaged_files(
    folder: pathlib.Path, capsys: Captured
) -> None:
    config = "{model: mlp, data: digits, epochs: 1}"
    good = '{"step": 4, "split": "train", "loss": 0.5, "time": 3}\n'
    row = '{"step": "a"}\n{"step": null}\n{"step": 1, "split": ["x"], "loss": 1e999}\n[3]\n'
    for name, log, result in (
        ("bytes", b"\xf9\xff\x00", "[]"),
        ("deep", b"[" * 100_000, "[" * 100_000),
        ("rows", row.encode() + good.encode(), '{"status": 3, "step": "x"}'),
        ("ran", good.encode(), '{"status": "completed", "step": 4}'),
    ):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "config.yaml").write_text(config)
        (folder / "runs" / name / "metrics.jsonl").write_bytes(log)
        (folder / "runs" / name / "result.json").write_text(result)
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[:3] + ["0.5"] * ("0.5" in line) for line in lines] == [
        ["bytes", "unfinished", "0"],
        ["deep", "unfinished", "0"],
        ["ran", "completed", "4", "0.5"],
        ["rows", "unfinished", "4", "0.5"],
    ]


def test_resume_refuses_fewer_epochs_than_the_run_has_completed(
    project: pathlib.Path, capsys: Captured
) -> None:
    """Otherwise `config.yaml` would not describe the run."""
    assert main(["train", "config.yaml", "output_dir=run", "compile=false"]) == 0
    written = (project / "run" / "config.yaml").read_bytes()
    capsys.readouterr()
    assert main(["resume", "run", "epochs=1"]) == 2
    said = capsys.readouterr().err
    assert "expected at least 2, the epoch that run has reached, got 1. Write epochs=4" in said
    assert (project / "run" / "config.yaml").read_bytes() == written
