"""What somebody new types, and what is said to that."""

from __future__ import annotations

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
    """Where the command is typed, after `ftrain init`; a small one, not compiled."""
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


def test_a_change_that_does_not_fit_the_checkpoint_changes_nothing(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml"]) == 0
    run = project / "runs/config"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["resume", "runs/config", "model.width=8", "epochs=2"]) == 1
    said = capsys.readouterr().err
    assert "model.width=8 epochs=2 does not fit the checkpoint of runs/config" in said
    assert "Nothing was changed" in said
    assert "`like`" not in said
    assert "restore" not in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    command = said.splitlines()[-1].partition(": ftrain ")[2]
    assert (
        command == "train runs/config/config.yaml model.width=8 epochs=2 output_dir=runs/config-2"
    )
    assert main(command.split()) == 0
    assert main(["resume", "runs/config", "epochs=2"]) == 0


def test_a_metric_that_does_not_exist_is_refused_however_often(
    project: pathlib.Path, capsys: Captured
) -> None:
    assert main(["train", "config.yaml", "checkpoint.monitor=eval/acuracy"]) == 1
    said = capsys.readouterr().err
    assert "there is no metric 'eval/acuracy' to monitor. Did you mean 'eval/accuracy'?" in said
    assert "Traceback" not in said
    assert "except Exception" not in said
    assert main(["resume", "runs/config"]) != 0
    assert "there is no metric 'eval/acuracy' to monitor" in capsys.readouterr().err
    assert main(["resume", "runs/config", "checkpoint.monitor=eval/accuracy"]) == 0


def test_a_question_ends_with_one_mark(project: pathlib.Path, capsys: Captured) -> None:
    assert main(["config", "config.yaml", "optimizer=adamww"]) == 2
    assert "Did you mean adamw? One's own" in capsys.readouterr().err
    assert main(["config", "config.yaml", "optimizer=qqqqqq"]) == 2
    assert "?." not in capsys.readouterr().err
