"""Test saving on file systems without locks, and on file systems that cannot sync a directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftrain.checkpoint import CheckpointWriteError, Store, _files, load, save, write_state_dict
from ftrain.checkpoint._files import Files
from ftrain.testing import assert_same_bits
from tests.checkpoint.states import train_state


class Without(Files):
    """A file system on which one kind of operation raises."""

    def __init__(self, operation: str, code: int) -> None:
        self.operation, self.code = operation, code

    def call(self, operation: str, path: str, function: Callable[..., Any], *args: Any) -> Any:
        if operation == self.operation:
            raise OSError(self.code, os.strerror(self.code), path)
        return super().call(operation, path, function, *args)


NO_SYNC = [Without("fsync directory", code) for code in (errno.EINVAL, errno.ENOTSUP)]
NO_LOCK = [Without("lock", code) for code in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)]


@pytest.mark.parametrize("system", NO_SYNC, ids=lambda each: errno.errorcode[each.code])
def test_save_tolerates_a_directory_that_cannot_be_synced(tmp_path: Path, system: Files) -> None:
    """Some network file systems return EINVAL, for which every save of a run once failed."""
    with _files.replaced(system), Store(tmp_path / "new" / "run", keep_last=1) as store:
        for step in (1, 2):
            store.save(train_state(step), step=step)
        assert store.steps() == [2]
        assert_same_bits(store.load(train_state(0))[0], train_state(2))
        write_state_dict(tmp_path / "weights", train_state(2).params)


def test_save_still_raises_if_syncing_a_directory_fails(tmp_path: Path) -> None:
    with (
        _files.replaced(Without("fsync directory", errno.EIO)),
        pytest.raises(CheckpointWriteError, match="Input/output error"),
    ):
        save(tmp_path / "one", train_state(1))


@pytest.mark.parametrize("system", NO_LOCK, ids=lambda each: errno.errorcode[each.code])
def test_store_on_a_file_system_without_locks_raises_and_proposes_lock_false(
    tmp_path: Path, system: Files
) -> None:
    with _files.replaced(system):
        with (
            Store(tmp_path) as store,
            pytest.raises(CheckpointWriteError, match="does not support locks") as error,
        ):
            store.lock()
        assert str(error.value).endswith("write Store(..., lock=False).")
        with Store(tmp_path, lock=False, keep_last=1) as store:
            assert not store.lock()
            for step in (1, 2):
                store.save(train_state(step), step=step)
        assert_same_bits(Store(tmp_path).load(train_state(0))[0], train_state(2))
        assert sorted(os.listdir(tmp_path)) == [".lock", "step-000000000002"]


def test_save_on_a_file_system_without_locks_keeps_temporary_directories_of_other_saves(
    tmp_path: Path,
) -> None:
    """Without locks, it is unknown whether the writers of the drafts are alive."""
    draft = tmp_path / ".tmp-1-0123abcd"
    draft.mkdir()
    with _files.replaced(NO_LOCK[0]):
        save(tmp_path / "one", train_state(1))
        assert_same_bits(load(tmp_path / "one", train_state(0))[0], train_state(1))
    assert draft.is_dir()
