"""Lock that gives a directory of checkpoints a single writer.

Read next: `store.py`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib

from ftrain.checkpoint._directories import make_directories
from ftrain.checkpoint.errors import CheckpointLockedError, CheckpointWriteError
from ftrain.checkpoint.locks import NO_LOCKS, Lock
from ftrain.checkpoint.save import refusals

__all__ = ["WriterLock"]

_LOCK = ".lock"
_WITHOUT_LOCKS = (
    "The file system does not support locks. If no other process writes to this directory, write "
    "Store(..., lock=False)."
)


class WriterLock:
    """Lock of a directory, taken at the first write and held until `close`.

    Args:
        directory: the directory.
        enabled: False: only create the directory, for file systems without locks.
    """

    def __init__(self, directory: pathlib.Path, enabled: bool = True) -> None:
        self._directory, self._enabled = directory, enabled
        self._lock: Lock | None = None
        self._created: list[pathlib.Path] = []

    def acquire(self) -> bool:
        """Lock the directory, and create it if missing; return True if this call acquired the lock.

        Raises:
            CheckpointWriteError: the directory cannot be created, or its file system has no locks.
            CheckpointLockedError: another writer holds the lock; or the locked directory was replaced.
        """
        directory = self._directory
        if self._lock is not None and self._lock.held:
            with refusals(f"inspect the lock of {directory}"):
                if not self._lock.lost():
                    return False
            raise CheckpointLockedError(
                f"{directory} is no longer the directory that this store has locked: it was "
                "deleted, moved or replaced, and another process may be writing to it. Check its "
                "content, then call store.close(), and save again."
            )
        with refusals(f"lock {directory}"):
            self._created = [x for x in (directory, *directory.parents) if not x.exists()]
            make_directories(str(directory))
            if not self._enabled:
                return False
            try:
                lock = Lock.file(os.path.join(directory, _LOCK))
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                raise CheckpointWriteError(f"lock {directory}", error, _WITHOUT_LOCKS) from error
        if not lock.held:
            lock.close()
            raise CheckpointLockedError(
                f"{directory} is locked by another process, or by another Store in this process. "
                "Close that store first (store.close()), or save to another directory."
            )
        self._lock = lock
        return True

    def discard_unused(self) -> None:
        """Delete the directories that this lock has created, if they hold nothing but the lock."""
        if self._lock is None or not self._created or os.listdir(self._directory) != [_LOCK]:
            return
        with contextlib.suppress(OSError):  # another process may have written to a directory
            os.unlink(self._directory / _LOCK)
            for each in self._created:
                os.rmdir(each)

    def close(self) -> None:
        """Release the lock."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()
