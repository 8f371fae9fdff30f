"""Test that a second start of a run changes no file while the first process is running."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftrain.checkpoint import CheckpointLockedError, Store
from ftrain.loop import callbacks
from tests.loop.runs import STEPS, fit, train_data, trainer

_FIRST = """
import sys
from pathlib import Path
from ftrain.loop import Logged, callbacks
from tests.loop.runs import STEPS, train_data, trainer

folder = Path(sys.argv[1])
logs = [callbacks.JSONLLogger(folder / "metrics.jsonl"), callbacks.CSVLogger(folder / "metrics.csv")]
made = trainer(*logs, store=folder / "checkpoints", log_every=1)
began = False
for event in made.events(STEPS.init_state(0), train_data(), epochs=1):
    if isinstance(event, Logged) and not began:
        began = True
        print("began", flush=True)
        sys.stdin.readline()
"""


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def logged(folder: Path, **options: Any) -> Any:
    logs = [
        callbacks.JSONLLogger(folder / "metrics.jsonl"),
        callbacks.CSVLogger(folder / "metrics.csv"),
        callbacks.FileLogger(folder / "train.log"),
    ]
    return trainer(*logs, store=folder / "checkpoints", **options)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_second_process_is_refused_before_its_first_write(tmp_path: Path, resume: Any) -> None:
    """A second process once truncated the log of the first, trained to the end, and only then raised."""
    command = [sys.executable, "-c", _FIRST, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "began\n"
        before = files(tmp_path)
        assert before["metrics.jsonl"]
        with pytest.raises(CheckpointLockedError, match="locked by another process"):
            fit(logged(tmp_path), epochs=1, resume=resume)
        assert files(tmp_path) == before
        first.communicate("go on\n", timeout=60)
    assert first.returncode == 0
    # The log has a row for each of 7 steps, and one for the epoch.
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 8


def test_refused_start_of_a_run_releases_the_lock_of_its_store(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        trainer(store=store).fit(STEPS.init_state(0), train_data(), max_steps=1)
    second = Store(tmp_path)
    with pytest.raises(ValueError, match="with a run up to step 1"):
        trainer(store=second).fit(STEPS.init_state(0), train_data(), max_steps=2)
    assert Store(tmp_path).lock()


def test_store_lock_returns_true_only_to_the_call_that_acquires_it(tmp_path: Path) -> None:
    with Store(tmp_path / "new") as store:
        assert store.lock()
        assert not store.lock()
        with pytest.raises(CheckpointLockedError):
            Store(tmp_path / "new").lock()
    assert store.lock()
    store.close()
