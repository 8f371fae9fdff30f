"""Locks of a run's log files, so that a second run cannot truncate the files or add its rows.

A store locks its directory; a run without a store has only its logs. Each log is locked by a hidden file
beside it, not by its own inode, which is replaced when a table gets a column.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterable

from ftrain.checkpoint.locks import NO_LOCKS, Lock
from ftrain.loop.events import LoopWarning

__all__ = ["LogLockedError", "LogLocks"]

_TRIES = 100


class LogLockedError(RuntimeError):
    """Error for a log file to which another run writes; no file was changed."""


class LogLocks:
    """Locks of log files, held from `acquire` to `close`.

    A lock is a file `.NAME.lock` beside the log, deleted at the end. If the process is killed, the file
    remains, unlocked, and the next run takes it.
    """

    def __init__(self) -> None:
        self._held: list[tuple[Lock, pathlib.Path]] = []
        self._created: list[pathlib.Path] = []

    def acquire(self, paths: Iterable[pathlib.Path], *, warn: bool = True) -> None:
        """Lock log files; create their directories if missing.

        A file in a directory that cannot be written is not locked: the logger reports the error.

        Args:
            paths: the files.
            warn: True to warn if the file system has no locks.

        Raises:
            LogLockedError: another run writes to one of the files; no file is locked then.
        """
        for path in dict.fromkeys(pathlib.Path(os.path.abspath(path)) for path in paths):
            try:
                self._lock(path)
            except OSError as error:
                if warn and error.errno in NO_LOCKS:
                    warnings.warn(
                        f"{path}: the file system supports no locks ({error.strerror}), so a second "
                        "run that writes to this file is not refused. Give each run its own file.",
                        LoopWarning,
                        stacklevel=2,
                    )
            except LogLockedError:
                self.close(unused=True)
                raise

    def close(self, *, unused: bool = False) -> None:
        """Release the locks; if the logs are unused, delete the empty directories made for them."""
        held, self._held = self._held, []
        created, self._created = self._created, []
        for lock, path in held:
            # A forked child does not hold the locks of its parent, whose files must stay.
            if lock.held:
                with contextlib.suppress(OSError):
                    path.unlink()
            lock.close()
        for folder in reversed(created if unused else []):
            with contextlib.suppress(OSError):  # the directory is not empty
                folder.rmdir()

    def __del__(self) -> None:
        self.close()  # if a run ends before its first event is read

    def _lock(self, path: pathlib.Path) -> None:
        folder, beside = path.parent, path.with_name(f".{path.name}.lock")
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._created += reversed(missing)
        for _ in range(_TRIES):
            lock = Lock.file(beside)
            if not lock.held:
                lock.close()
                break
            if not lock.lost():
                self._held.append((lock, beside))
                return
            lock.close()  # the last holder has deleted the file since it was opened
        raise LogLockedError(
            f"{path}: expected a log to which no other run writes, got one that is in use. Wait until "
            "that run has ended (in this process: close the generator of Trainer.events), or write to "
            "another file."
        )
