"""Test commands whose standard output is closed, full, or has another encoding."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

CONFIG = """
model: {name: mlp, inputs: 64, outputs: 10, hidden: [4]}
data: digits
max_steps: 2
compile: false
"""


def called(folder: pathlib.Path, *arguments: str, shell: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ftrain in a shell, with redirections."""
    command = " ".join([sys.executable, "-m", "ftrain", *arguments, shell])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("shell", [">&-", "<&- >&- 2>&-", "> /dev/full 2> /dev/full"])
def test_completed_run_exits_with_0_even_if_its_output_is_closed_or_on_a_full_disk(
    tmp_path: pathlib.Path, shell: str
) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    ended = called(tmp_path, "train", "run.yaml", shell=shell)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "NoneType" not in ended.stderr
    assert '"completed"' in (tmp_path / "runs/run/result.json").read_text()
    assert "epoch 1" in (tmp_path / "runs/run/train.log").read_text()
    # No file of the run has the descriptor of a closed output, to which a print would then write.
    assert (tmp_path / "runs/run/metrics.jsonl").read_text().startswith('{"step": ')


def test_command_that_only_prints_fails_if_its_output_is_on_a_full_disk(
    tmp_path: pathlib.Path,
) -> None:
    ended = called(tmp_path, "config", shell="> /dev/full")
    assert ended.returncode == 1
    assert ended.stderr == "ftrain config: standard output: No space left on device\n"
    assert called(tmp_path, "config", shell="| head -n 1").stdout.startswith("model: ")
    ended = called(tmp_path, "config", shell=">&-")
    assert (ended.returncode, ended.stderr) == (0, "")
    ended = called(tmp_path, "config", "--unknown", shell="2> /dev/full")
    assert ended.returncode == 2


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_fail_if_their_output_is_on_a_full_disk(
    tmp_path: pathlib.Path, option: str
) -> None:
    ended = called(tmp_path, option, shell="> /dev/full")
    assert ended.returncode == 1
    assert ended.stderr == f"ftrain {option}: standard output: No space left on device\n"
    ended = called(tmp_path, option, shell="| true")
    assert (ended.returncode, ended.stderr) == (0, "")
