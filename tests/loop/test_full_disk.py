"""Test that a run on a full disk reports failed saves once, and the remedy at its end."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from ftrain.checkpoint import CheckpointWriteError, Store, _files
from ftrain.checkpoint._files import Files
from ftrain.loop import CallbackWarning, callbacks
from tests.loop.runs import digest, fit, trainer


class FullDisk(Files):
    """File system whose writes fail, from number `first` to number `last`."""

    def __init__(self, first: int = 0, last: int = 1 << 30, code: int = errno.ENOSPC) -> None:
        self.first, self.last, self.code, self.writes = first, last, code, -1

    def call(self, operation: str, path: str, function: Any, *args: Any) -> Any:
        if operation == "write":
            self.writes += 1
            if self.first <= self.writes < self.last:
                raise OSError(self.code, os.strerror(self.code), path)
        return super().call(operation, path, function, *args)


def failed(store: Any, disk: Files, **options: Any) -> tuple[CheckpointWriteError, list[str]]:
    """Return the error of a run of six steps, and its warnings."""
    with warnings.catch_warnings(record=True) as said, _files.replaced(disk):
        warnings.simplefilter("always")
        with pytest.raises(CheckpointWriteError) as found:
            fit(trainer(store=store, save_every=1), max_steps=6, **options)
    return found.value, [str(each.message) for each in said]


def test_failed_saves_are_reported_once_and_at_the_end(tmp_path: Path) -> None:
    error, said = failed(tmp_path, FullDisk())
    assert len(said) == 1
    assert said[0].startswith(
        "the checkpoint of step 1 could not be written (no checkpoint exists yet): No space left on "
        "device. The disk is full: free some space (a checkpoint needs "
    )
    assert "The state in memory and older checkpoints are unchanged" in str(error)
    assert error.__notes__[0].startswith("The run reached step 6, epoch 1, and has no checkpoint.")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_error_at_the_end_of_a_run_with_failed_saves_names_the_last_saved_step(
    tmp_path: Path, asynchronous: bool
) -> None:
    whole = fit(trainer(), max_steps=6)
    disk = FullDisk()
    with _files.replaced(disk), Store(tmp_path / "counted") as store:
        disk.first = 1 << 30
        fit(trainer(store=store, save_every=1), max_steps=2)
    with Store(tmp_path / "run", asynchronous=asynchronous) as store:
        error, said = failed(store, FullDisk(disk.writes + 1))
    assert len(said) == 1
    assert "step 3 could not be written (the newest checkpoint is that of step 2)" in said[0]
    assert error.__notes__[0].startswith(
        "The run reached step 6, epoch 1, and its newest checkpoint is that of step 2."
    )
    assert error.fit_result.checkpoint.endswith("step-000000000002")  # type: ignore[attr-defined]
    resumed = fit(trainer(store=tmp_path / "run"), max_steps=6, resume=True)
    assert digest(resumed) == digest(whole)


def test_run_completes_if_a_later_asynchronous_save_succeeds(tmp_path: Path) -> None:
    with Store(tmp_path, asynchronous=True) as store, _files.replaced(FullDisk(0, 1)):
        with pytest.warns(UserWarning, match="the checkpoint of step 3 could not be written"):
            result = fit(trainer(store=store, save_every=3), max_steps=6)
    assert result.status == "completed"
    assert result.checkpoint.endswith("step-000000000006")


def test_failed_saves_report_errors_other_than_a_full_disk(tmp_path: Path) -> None:
    disk = FullDisk(code=errno.EFBIG)
    error, said = failed(tmp_path, disk)
    assert len(said) == 1
    assert "File too large. The limit of a file's size is reached: raise the limit" in said[0]
    assert error.errno == errno.EFBIG


def test_full_disk_error_names_the_needed_and_the_free_bytes(
    tmp_path: Path, monkeypatch: Any
) -> None:
    class Usage:
        f_bavail, f_frsize = 2, 1000

    monkeypatch.setattr(os, "statvfs", lambda path: Usage)
    error, _ = failed(tmp_path, FullDisk())
    assert "(a checkpoint needs " in error.remedy
    assert error.remedy.endswith("and 2 kB are free).")


def test_logs_are_complete_if_space_is_freed_before_the_next_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each write to a log, there is one run in which that write fails."""
    names = ("metrics.jsonl", "metrics.csv")

    def run(folder: Path) -> list[list[str]]:
        logs = [
            callbacks.JSONLLogger(folder / names[0]),
            callbacks.CSVLogger(folder / names[1]),
        ]
        fit(trainer(*logs, log_every=1), max_steps=4)
        return [(folder / name).read_text().splitlines() for name in names]

    whole, write = run(tmp_path / "whole"), os.write
    for k in range(9):
        count = [0]

        def once(descriptor: int, data: Any, count: list[int] = count, k: int = k) -> int:
            count[0] += 1
            if count[0] == k + 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", once)
        with pytest.warns(CallbackWarning, match="No space left"):
            found = run(tmp_path / str(k))
        monkeypatch.undo()
        assert [len(lines) for lines in found] == [len(lines) for lines in whole]


def test_best_checkpoint_stays_the_best_if_its_first_save_failed(tmp_path: Path) -> None:
    """The last save of a run once wrote this checkpoint without its metric."""
    store = Store(tmp_path, keep_last=1, keep_best=1, metric="eval/loss", mode="max")
    best = callbacks.Checkpointing(best=1, mode="max")
    with (
        store,
        _files.replaced(FullDisk(0, 1)),
        pytest.warns(UserWarning, match="could not be written"),
    ):
        fit(trainer(best, store=store), max_steps=3)
    (step,) = store.steps()
    assert step == 3
    assert store.best() == store.latest()
