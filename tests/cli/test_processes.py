"""Whole processes: how quickly help is there, and what a signal does to a run."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from ftrain.checkpoint import Store
from ftrain.cli import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def started(folder: pathlib.Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ftrain", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def init(folder: pathlib.Path) -> pathlib.Path:
    """A run of 50 steps with dropout, which saves at each fifth."""
    assert main(["init", str(folder)]) == 0
    config = (folder / "config.yaml").read_text()
    for key, value in (("epochs", "2"), ("dropout", "0.2")):
        config = re.sub(rf"(?m)^( *){key}: .*$", rf"\g<1>{key}: {value}", config)
    config = config.replace("checkpoint:\n", "checkpoint:\n  every: 5\n")
    (folder / "config.yaml").write_text(config)
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes that a run ends with if nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = started(folder, "train", str(init(folder)))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return final(folder / "runs" / "config")


def final(folder: pathlib.Path) -> bytes:
    newest = Store(folder / "checkpoints").latest()
    assert newest is not None
    files = sorted([*newest.glob("*.safetensors"), newest / "manifest.json"])
    return newest.name.encode() + b"".join(path.read_bytes() for path in files)


def test_help_is_there_at_once() -> None:
    def seconds(*command: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        return time.perf_counter() - began

    # What Python itself takes is no part of it: on a busy machine that alone may be half a second.
    took = min(seconds("-m", "ftrain", "--help") for _ in range(5))
    assert took - min(seconds("-c", "pass") for _ in range(5)) < 0.25


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ftrain.cli import main; main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pydantic', 'yaml')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_wrong_key_does_not_wait_for_torch(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run.yaml").write_text("epoch: 3")
    code = (
        "import sys; from ftrain.cli import main; code = main(['train', 'run.yaml']); "
        "sys.exit(0 if code == 2 and 'torch' not in sys.modules else 1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_run_that_is_stopped_and_resumed_ends_the_same(
    undisturbed: bytes, tmp_path: pathlib.Path, number: signal.Signals, code: int
) -> None:
    init(tmp_path)
    run = tmp_path / "runs" / "config"
    process = started(tmp_path, "train", "config.yaml")
    store = run / "checkpoints"
    while process.poll() is None and len(list(store.glob("step-*"))) < 2:
        time.sleep(0.01)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    if number != signal.SIGKILL:
        assert "go on with: ftrain resume runs/config" in said
    resumed = started(tmp_path, "resume", "runs/config")
    said, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    assert "completed at step 50" in said
    assert final(run) == undisturbed
