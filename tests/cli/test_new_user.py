"""Test the commands and mistakes of a new user, and their messages."""

from __future__ import annotations

import json
import pathlib
import re
import sys
from collections.abc import Iterator

import pytest

from ftrain.cli import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def project(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> Iterator[pathlib.Path]:
    """Return the current directory after `ftrain init`, with one epoch and without compilation."""
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    assert main(["init"]) == 0
    config = re.sub(r"(?m)^epochs: .*$", "epochs: 1", (tmp_path / "config.yaml").read_text())
    config = re.sub(r"(?m)^compile: .*$", "compile: false", config)
    (tmp_path / "config.yaml").write_text(config)
    capsys.readouterr()
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    sys.path[:] = path


def test_resume_with_an_override_that_does_not_fit_the_checkpoint_changes_no_file(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml"]) == 0
    run = project / "runs/config"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["resume", "runs/config", "model.width=8", "epochs=2"]) == 1
    said = capsys.readouterr().err
    assert "model.width=8 epochs=2 does not fit the checkpoint of runs/config" in said
    assert "No file was changed" in said
    assert "`like`" not in said
    assert "restore" not in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    command = said.splitlines()[-1].partition(": ftrain ")[2]
    assert (
        command == "train runs/config/config.yaml model.width=8 epochs=2 output_dir=runs/config-2"
    )
    assert main(command.split()) == 0
    assert main(["resume", "runs/config", "epochs=2"]) == 0


def test_unknown_monitored_metric_is_refused_again_on_resume(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "checkpoint.monitor=eval/acuracy"]) == 2
    said = capsys.readouterr().err
    assert "unknown metric 'eval/acuracy'. Did you mean 'eval/accuracy'?" in said
    assert "Traceback" not in said
    assert "except Exception" not in said
    assert main(["resume", "runs/config"]) != 0
    assert "unknown metric 'eval/acuracy'" in capsys.readouterr().err
    assert main(["resume", "runs/config", "checkpoint.monitor=eval/accuracy"]) == 0


def test_error_with_a_suggestion_ends_with_one_punctuation_mark(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["config", "config.yaml", "optimizer=adamww"]) == 2
    assert "Did you mean adamw? Write your own" in capsys.readouterr().err
    assert main(["config", "config.yaml", "optimizer=qqqqqq"]) == 2
    assert "?." not in capsys.readouterr().err


def test_unknown_argument_lr_suggests_learning_rate(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "optimizer.lr=1e-3"]) == 2
    assert "unknown argument of adamw. Did you mean learning_rate?" in capsys.readouterr().err
    assert main(["train", "config.yaml", "optimizer.qqqq=1e-3"]) == 2
    assert "learning_rate" in capsys.readouterr().err


def test_train_command_on_a_complete_run_prints_how_to_train_longer(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "--dry-run"]) == 0
    assert "(holds a run:" not in capsys.readouterr().out
    assert main(["train", "config.yaml"]) == 0
    assert "the run is complete" not in capsys.readouterr().out
    assert main(["train", "config.yaml", "--dry-run"]) == 0
    assert "runs/config (holds a run:" in capsys.readouterr().out
    assert main(["resume", "runs/config"]) == 0
    said = "the run is complete; to train longer: ftrain resume runs/config epochs=2"
    assert said in capsys.readouterr().out
    written = (project / "runs" / "config" / "config.yaml").read_bytes()
    assert main(["resume", "runs/config", "optimizer.learning_rate=0.5"]) == 2
    said = "optimizer: expected the value of the complete run runs/config, got another"
    assert said in capsys.readouterr().err
    assert (project / "runs" / "config" / "config.yaml").read_bytes() == written
    assert main(["resume", "runs/config", "epochs=2"]) == 0
    assert "the run is complete" not in capsys.readouterr().out
    assert main(["eval", "runs/config", "--checkpoint", "nope"]) == 2
    said = capsys.readouterr().err
    assert "Choose one of best, latest, step-000000000025" in said


def test_path_on_the_command_line_is_relative_to_the_current_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["x,target", *(f"{n},{2 * n}" for n in range(20))]
    (tmp_path / "x.csv").write_text("\n".join(rows))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/prices.yaml").write_text(
        "model: {name: mlp, inputs: 1, outputs: 1}\ncompile: false\nepochs: 1\n"
        "batch_size: 4\noutput_dir: runs/prices\n"
        "data: {name: csv, path: ../x.csv, target: target, held_out: 0.2}\n"
        "loss: mse\n"
    )
    assert main(["train", "configs/prices.yaml"]) == 0
    (tmp_path / "y.csv").write_text("\n".join(rows))
    run = str(next(tmp_path.glob("**/runs/prices")))
    assert main(["eval", run, "data.path=y.csv"]) == 0
    assert main(["resume", run, "data.path=y.csv", "epochs=2"]) == 0
    (tmp_path / "x.csv").unlink()
    assert main(["eval", run]) == 0  # the run's configuration has the relative path of y.csv
    assert main(["eval", run, "data.path=z.csv"]) == 2


def test_ema_metrics_are_in_the_output_of_train_and_eval_and_in_the_log(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "ema=0.9"]) == 0
    said = capsys.readouterr().out
    closing = [line.split() for line in said.partition("completed at")[2].splitlines()]
    assert [line[4] for line in closing if line[:1] == ["epoch"]] == ["train", "eval", "eval/ema"]
    assert main(["eval", "runs/config", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = [
        json.loads(line)
        for line in (project / "runs/config/metrics.jsonl").read_text().splitlines()
    ]
    row = next(row for row in rows if row["split"] == "eval")
    assert row["ema/loss"] != row["loss"]
    assert found["metrics"]["loss"] == pytest.approx(row["loss"], rel=1e-6)
    assert found["ema"]["metrics"]["loss"] == pytest.approx(row["ema/loss"], rel=1e-6)
    assert found["ema"]["split"] == "eval/ema"
    assert main(["eval", "runs/config"]) == 0
    path, *lines = capsys.readouterr().out.splitlines()
    assert pathlib.Path(path).parent == pathlib.Path("runs/config/checkpoints")  # as `train` prints
    assert [line.split()[4] for line in lines] == ["eval", "eval/ema"]
    assert main(["runs"]) == 0
    header, line = (each.split() for each in capsys.readouterr().out.splitlines())
    assert line[header.index("eval/ema/loss")] == f"{row['ema/loss']:.4g}"


def test_eval_command_reports_the_epoch_of_the_checkpoint(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "epochs=3", "checkpoint.keep_last=3"]) == 0
    rows = map(json.loads, (project / "runs/config/metrics.jsonl").read_text().splitlines())
    epochs = {row["step"]: row["epoch"] for row in rows if row["split"] == "eval"}
    assert sorted(epochs) == [25, 50, 75]
    for step, epoch in epochs.items():
        capsys.readouterr()
        assert main(["eval", "runs/config", "--checkpoint", f"step-{step:012d}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["epoch"] == epoch
