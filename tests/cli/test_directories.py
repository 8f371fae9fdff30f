"""Test `ftrain runs` and `ftrain plot` on directories with logs of Python, pipes, links and code."""

from __future__ import annotations

import os
import pathlib

import pytest
import torch

import ftrain
from ftrain import optim
from ftrain.cli import main
from ftrain.loop import Trainer, callbacks

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Return the current directory of the commands."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_runs_and_plot_accept_a_directory_written_by_a_python_program(
    folder: pathlib.Path, capsys: Captured
) -> None:
    steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
    log = callbacks.JSONLLogger("runs/python/metrics.jsonl")
    trainer = Trainer(steps, [log], compile=False, log_every=1)
    trainer.fit(steps.init_state(0), [torch.ones(4, 3)], epochs=2)
    assert main(["runs"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["run", "status", "step", "train/loss"]
    assert row.split()[:2] == ["python", "2"]
    assert "(trained in Python)" in row
    for name in ("runs/python", "runs/python/metrics.jsonl"):
        assert main(["plot", name]) == 0
        assert capsys.readouterr().out == "runs/python/curves.png\n"
    assert main(["plot", "runs/python", "runs/python", "--out", "page.html"]) == 0
    assert main(["eval", "runs/python"]) == 2


def test_runs_command_lists_runs_despite_a_log_or_configuration_that_is_a_pipe(
    folder: pathlib.Path, capsys: Captured
) -> None:
    for name in ("good", "log", "config"):
        (folder / "runs" / name).mkdir(parents=True)
        (folder / "runs" / name / "config.yaml").write_text("{model: mlp, data: digits, epochs: 1}")
        (folder / "runs" / name / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5}')
    (folder / "runs/log/metrics.jsonl").unlink()
    os.mkfifo(folder / "runs/log/metrics.jsonl")
    (folder / "runs/config/config.yaml").unlink()
    os.mkfifo(folder / "runs/config/config.yaml")
    assert main(["runs"]) == 0
    printed = capsys.readouterr()
    rows = printed.out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["config", "good", "log"]
    assert "(config.yaml cannot be read)" in rows[0]
    assert "note: runs/log/metrics.jsonl: expected a regular file, got a pipe" in printed.err


def test_commands_runs_and_plot_do_not_execute_code_named_in_a_configuration(
    folder: pathlib.Path, capsys: Captured
) -> None:
    (folder / "runs/received").mkdir(parents=True)
    (folder / "own.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    (folder / "runs/received/config.yaml").write_text(
        "{model: ../../own.py:Net, data: 'subprocess:getoutput', epochs: 1, imports: [../../own.py]}"
    )
    (folder / "runs/received/metrics.jsonl").write_text('{"step": 3, "loss": 0.5}')
    assert main(["runs"]) == 0
    assert "own.py:Net" in capsys.readouterr().out
    for arguments in (["plot", "runs/received"], ["plot", "runs/received", "--out", "page.html"]):
        assert main(arguments) == 0
    assert not (folder / "executed").exists()


def test_plot_command_does_not_write_through_a_link_in_the_run(
    folder: pathlib.Path, capsys: Captured
) -> None:
    (folder / "run").mkdir()
    (folder / "run/metrics.jsonl").write_text('{"step": 3, "loss": 0.5}')
    (folder / "elsewhere").mkdir()
    (folder / "run/curves.png").symlink_to(folder / "elsewhere")
    assert main(["plot", "run"]) == 0
    assert not list((folder / "elsewhere").iterdir())
    assert (folder / "run/curves.png").read_bytes().startswith(b"\x89PNG")
    (folder / "run/curves.png").unlink()
    (folder / "run/curves.png").mkdir()
    assert main(["plot", "run"]) == 2
    assert "run/curves.png: cannot be written to" in capsys.readouterr().err
    assert main(["plot", "run", "--out", "elsewhere"]) == 0  # a folder that the user names
    assert (folder / "elsewhere/curves.png").exists()
