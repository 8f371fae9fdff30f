"""Test that a crash loses no completed save, on a file system that stores only synced data."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ftrain import checkpoint
from ftrain.checkpoint import _files
from ftrain.testing import describe_difference
from tests.checkpoint.faults import Event, Recording
from tests.checkpoint.states import train_state
from tests.checkpoint.weak_disk import Disk, materialise

ACKNOWLEDGED = Event("acknowledged", "")


def new_steps(store: checkpoint.Store, version: int) -> None:
    store.save(train_state(version), step=version)


def one_step(store: checkpoint.Store, version: int) -> None:
    store.save(train_state(version), step=1, replace=True)


def crash_states(
    base: Path,
    save: Callable[[checkpoint.Store, int], None],
    skip: tuple[str, ...] = (),
    until: frozenset[str] | None = None,
) -> Counter[str]:
    """Save versions 2 and 3 over 1, keeping one, and count the load results after each crash.

    Args:
        save: saves a version, as a new step or as a replacement of the same step.
        skip: operations that the simulated disk omits, as if the code did not call them.
        until: stop when all of these results have occurred.
    """
    directory = base / "run"
    with checkpoint.Store(directory, keep_last=1) as store:
        save(store, 1)
    disk, recording = Disk(directory), Recording()
    with _files.replaced(recording), checkpoint.Store(directory, keep_last=1) as store:
        for version in (2, 3):
            save(store, version)
            recording.events.append(ACKNOWLEDGED)

    found: Counter[str] = Counter()
    acknowledged, seen = 1, set()
    for event in [Event("", ""), *recording.events]:
        acknowledged += event == ACKNOWLEDGED
        if event.operation not in skip:
            disk.do(event)
        for state in disk.states():
            key = (acknowledged, frozenset(state.items()))
            if key in seen:
                continue
            seen.add(key)
            found[judge(state, base / "crashed", acknowledged)] += 1
            if until is not None and until <= found.keys():
                return found
    return found


def judge(state: dict[str, bytes | None], directory: Path, acknowledged: int) -> str:
    shutil.rmtree(directory, ignore_errors=True)
    materialise(state, directory)
    store = checkpoint.Store(directory, keep_last=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", checkpoint.CorruptCheckpointWarning)
        try:
            loaded, _ = store.load(like=train_state(0))
        except checkpoint.CheckpointError:
            return "nothing loadable"
    version = int(loaded.step)
    if describe_difference(loaded, train_state(version)) is not None:
        return "silently corrupt"
    if version < acknowledged:
        return "acknowledged lost"
    # The run can be resumed: the next save works.
    with store, warnings.catch_warnings():
        warnings.simplefilter("ignore", checkpoint.CorruptCheckpointWarning)
        store.save(train_state(4), step=4)
    assert not list(directory.glob(".tmp-*")) + list(directory.glob(".trash-*"))
    return "good"


@pytest.mark.parametrize("save", [new_steps, one_step])
def test_no_simulated_crash_loses_a_checkpoint_whose_save_had_returned(memory_path, save):
    found = crash_states(memory_path, save)
    assert found.keys() == {"good"}, found
    assert found["good"] > 200


@pytest.mark.parametrize(
    ("skip", "loses"),
    [
        ("fsync directory", {"acknowledged lost", "nothing loadable"}),
        ("fsync", {"nothing loadable"}),
    ],
)
@pytest.mark.parametrize("save", [new_steps, one_step])
def test_crash_simulation_detects_a_missing_sync_of_files_or_directories(
    memory_path, save, skip, loses
):
    """Without a sync, the simulated crashes lose a checkpoint."""
    found = crash_states(memory_path, save, (skip,), frozenset(loses))
    assert found.keys() >= loses
    assert "silently corrupt" not in found
