"""Test that a second start of a run changes no file while the first process is running."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftrain.checkpoint import CheckpointLockedError, Lock, Store, _files
from ftrain.config import ConfigError, load
from ftrain.config.run import train
from ftrain.loop import LogLockedError, LoopWarning, callbacks
from ftrain.loop._log_locks import LogLocks
from tests import preloaded
from tests.loop.runs import STEPS, fit, train_data, trainer

_FIRST = """
import sys
from pathlib import Path
from ftrain.loop import Logged, callbacks
from tests.loop.runs import STEPS, train_data, trainer

folder = Path(sys.argv[1])
logs = [callbacks.JSONLLogger(folder / "metrics.jsonl"), callbacks.CSVLogger(folder / "metrics.csv")]
store = folder / "checkpoints" if sys.argv[2] == "store" else None
made = trainer(*logs, store=store, log_every=1)
began = False
for event in made.events(STEPS.init_state(0), train_data(), epochs=1):
    if isinstance(event, Logged) and not began:
        began = True
        print("began", flush=True)
        sys.stdin.readline()
"""


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@contextlib.contextmanager
def first_process(folder: Path, store: str) -> Iterator[preloaded.Process | subprocess.Popen[str]]:
    """Run a trainer in another process, which waits in its first row until it reads a line."""
    command = ["-c", _FIRST, str(folder), store]
    with preloaded.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "began\n"
        yield first
        if first.poll() is None:
            first.communicate("go on\n", timeout=60)


def logged(folder: Path, **options: Any) -> Any:
    logs = [
        callbacks.JSONLLogger(folder / "metrics.jsonl"),
        callbacks.CSVLogger(folder / "metrics.csv"),
        callbacks.FileLogger(folder / "train.log"),
    ]
    return trainer(*logs, store=folder / "checkpoints", **options)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_second_process_of_a_run_is_refused_before_its_first_write(
    tmp_path: Path, resume: Any
) -> None:
    """A second process once truncated the log of the first, trained to the end, and only then raised."""
    with first_process(tmp_path, "store") as first:
        before = files(tmp_path)
        assert before["metrics.jsonl"]
        with pytest.raises(CheckpointLockedError, match="locked by another process"):
            fit(logged(tmp_path), epochs=1, resume=resume)
        assert files(tmp_path) == before
    assert first.returncode == 0
    # The log has a row for each of 7 steps, and one for the epoch.
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize("name", ["metrics.jsonl", "metrics.csv"])
def test_second_process_of_a_run_without_a_store_is_refused_because_the_log_is_locked(
    tmp_path: Path, name: str
) -> None:
    """Without a store nothing was locked, and the second start truncated the log of the first."""
    kind = callbacks.JSONLLogger if name == "metrics.jsonl" else callbacks.CSVLogger
    text = callbacks.FileLogger(tmp_path / "new" / "train.log")
    with first_process(tmp_path, "no store") as first:
        before = files(tmp_path)
        assert before[name]
        with pytest.raises(LogLockedError, match=rf"{name}: expected a log to which no other run"):
            fit(trainer(text, kind(tmp_path / name)), epochs=1)
        assert files(tmp_path) == before
        assert not (tmp_path / "new").exists()
        fit(trainer(kind(tmp_path / "others" / name)), epochs=1)
    assert first.returncode == 0
    assert files(tmp_path).keys() == {"metrics.jsonl", "metrics.csv"}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 8
    fit(trainer(kind(tmp_path / name)), epochs=1)  # the first run has ended


def test_log_of_a_killed_run_is_unlocked(tmp_path: Path) -> None:
    with first_process(tmp_path, "no store") as first:
        first.kill()
        first.wait(timeout=60)
        assert ".metrics.jsonl.lock" in files(tmp_path)
        fit(trainer(callbacks.JSONLLogger(tmp_path / "metrics.jsonl")), epochs=1)
    assert ".metrics.jsonl.lock" not in files(tmp_path)


def test_configured_run_is_refused_while_a_python_program_writes_to_its_logs(
    tmp_path: Path,
) -> None:
    """`--overwrite` would delete the log of the running program."""
    config = load(
        {"model": {"name": "mlp", "inputs": 64, "outputs": 10}, "data": "digits", "epochs": 1}
        | {"output_dir": str(tmp_path), "compile": False, "progress": False}
    )
    with first_process(tmp_path, "no store"):
        before = files(tmp_path)
        with pytest.raises(ConfigError, match="another process is training in"):
            train(config, overwrite=True)
        assert {name: before[name] for name in ("metrics.jsonl", "metrics.csv")}.items() <= (
            files(tmp_path).items()
        )


@pytest.mark.parametrize("ends", ["error", "abandoned", "unread"])
def test_log_is_unlocked_after_a_run_that_failed_or_was_abandoned(
    tmp_path: Path, ends: str
) -> None:
    log = callbacks.JSONLLogger(tmp_path / "metrics.jsonl")
    made = trainer(log, log_every=1)
    if ends == "error":
        with pytest.raises(ValueError, match="it is empty"):
            made.fit(STEPS.init_state(0), lambda epoch: [], epochs=1)
    else:
        events = made.events(STEPS.init_state(0), train_data(), epochs=1)
        if ends == "abandoned":
            next(events)
        with pytest.raises(LogLockedError):
            fit(made, epochs=1)
        del events
    fit(made, epochs=1)
    assert files(tmp_path).keys() == {"metrics.jsonl"}


def test_forked_child_does_not_release_the_lock_of_its_parent(tmp_path: Path) -> None:
    locks = LogLocks()
    locks.acquire([tmp_path / "metrics.jsonl"])
    child = os.fork()
    if not child:
        locks.close()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(LogLockedError):
        LogLocks().acquire([tmp_path / "metrics.jsonl"])
    locks.close()
    assert not files(tmp_path)


def test_lock_is_acquired_if_its_last_holder_deletes_the_file_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder deletes the file between the opening and the locking of the next one."""
    first, opened = LogLocks(), Lock.file
    first.acquire([tmp_path / "metrics.jsonl"])

    def file(path: Any) -> Lock:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        first.close()
        monkeypatch.setattr(Lock, "file", opened)
        return Lock(descriptor, str(path))

    monkeypatch.setattr(Lock, "file", file)
    second = LogLocks()
    second.acquire([tmp_path / "metrics.jsonl"])
    with pytest.raises(LogLockedError):
        LogLocks().acquire([tmp_path / "metrics.jsonl"])
    second.close()


def test_log_on_a_file_system_without_locks_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_files.Files, "lock", no_locks)
    log = callbacks.JSONLLogger(tmp_path / "metrics.jsonl")
    with pytest.warns(LoopWarning, match=r"metrics\.jsonl: the file system supports no locks"):
        fit(trainer(log), epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(trainer(log, store=Store(tmp_path / "checkpoints", lock=False)), epochs=1)


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
