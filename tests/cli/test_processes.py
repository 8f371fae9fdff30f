"""Test whole processes: the time of `--help`, and the effect of signals on a run."""

from __future__ import annotations

import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.campaign import choice
from tests.cli import interruptions

TRAIN = ["train", str(interruptions.DIGITS), *interruptions.SMALL]


def test_help_command_takes_little_cpu_time() -> None:
    def seconds() -> float:
        """Return the CPU time of child processes so far, which other processes do not affect."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = seconds()
    subprocess.run([sys.executable, "-m", "ftrain", "--help"], check=True, capture_output=True)
    # Measured: 0.035 s, of which Python's start takes 0.015 s. An import of torch would take 2 s.
    assert seconds() - before < 0.5


def test_help_command_does_not_import_torch_or_numpy() -> None:
    code = (
        "import sys; from ftrain.cli import main; main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pydantic', 'yaml')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_unknown_key_is_reported_without_importing_torch(tmp_path: pathlib.Path) -> None:
    (tmp_path / "run.yaml").write_text("epoch: 3")
    code = (
        "import sys; from ftrain.cli import main; code = main(['train', 'run.yaml']); "
        "sys.exit(0 if code == 2 and 'torch' not in sys.modules else 1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Train a small run on the digits without interruption; return its directory."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    interruptions.finished(folder, *TRAIN, "output_dir=run")
    return folder / "run"


@pytest.mark.parametrize("number", choice([signal.SIGINT, signal.SIGKILL], interruptions.SIGNALS))
def test_run_interrupted_by_signals_and_resumed_ends_with_the_same_bytes(
    uninterrupted: pathlib.Path, tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    draws = random.Random(int(number))
    train = [*TRAIN, "output_dir=run"]
    for _ in range(10):  # on a busy machine, a run may end before the signal is sent
        happened = interruptions.disturbed(tmp_path, train, "run", [number], draws, 0.1)
        if len(happened) == 2:
            break
        shutil.rmtree(tmp_path / "run")
    assert len(happened) == 2, "the run ended before the signal was sent"
    assert happened[0] == f"{number.name}: {interruptions.SIGNALS[number]}"
    assert interruptions.differences(tmp_path / "run", uninterrupted) == []


def test_train_command_writes_the_same_bytes_for_the_same_seed_only(
    uninterrupted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The processes use different hash seeds, so their sets have different orders."""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # random by default
    again = [sys.executable, "-m", "ftrain", *TRAIN, "output_dir=again"]
    subprocess.run(
        again, cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, timeout=600
    )
    assert interruptions.differences(tmp_path / "again", uninterrupted) == []
    interruptions.finished(tmp_path, *TRAIN, "output_dir=other", "seed=1")
    found = interruptions.differences(tmp_path / "other", uninterrupted)
    assert {"log", "results"} <= {*found}
    assert any(name.startswith("latest") for name in found)


def test_interrupted_run_prints_the_command_that_resumes_it(tmp_path: pathlib.Path) -> None:
    process = interruptions.started(tmp_path, *TRAIN, "output_dir=run", "epochs=1000")
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 143
    assert "resume with: ftrain resume run" in said
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"


def test_exit_code_reports_the_outcome_when_stdout_is_closed(tmp_path: pathlib.Path) -> None:
    """In `ftrain train ... 2>&1 | tee log`, Ctrl-C ends tee as well and breaks the pipe."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ftrain", *TRAIN, "output_dir=run", "epochs=1000", "progress=false"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.stdout.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 143
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"
