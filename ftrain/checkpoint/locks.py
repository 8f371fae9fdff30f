"""File locks, released when their process ends, even if killed; child processes inherit none.

Read next: `store.py`, whose writers hold a lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType

from ftrain.checkpoint import _files

__all__ = ["NO_LOCKS", "Lock", "Turns"]

#: Error numbers of a file system without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class Lock:
    """Exclusive lock on an open file or directory (`flock`), acquired at once or not at all.

    The lock is released by `close`, at the end of a `with` block, and when the process that took it
    ends, even if the process is killed. A forked child does not hold the lock.

    Attributes:
        held: True if the lock was acquired; False after `close`.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/.lock"
        >>> with Lock.file(path) as first, Lock.file(path) as second:
        ...     first.held, second.held
        (True, False)
    """

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor: int | None = descriptor
        self._path = path
        try:
            self.held = _files.system.lock(descriptor, path)
        except BaseException:
            self.close()
            raise
        _open.add(self)

    @staticmethod
    def directory(path: str | os.PathLike[str]) -> Lock:
        """Lock a directory itself, not a file in the directory.

        Raises:
            OSError: the directory cannot be opened, or the file system has no locks.
        """
        path = os.path.abspath(path)
        return Lock(_files.system.open_directory(path), path)

    @staticmethod
    def file(path: str | os.PathLike[str]) -> Lock:
        """Lock a file, which is created if it does not exist and is never deleted.

        Raises:
            OSError: the file cannot be opened, or the file system has no locks.
        """
        path = os.path.abspath(path)
        return Lock(_files.system.open_lock(path), path)

    def lost(self) -> bool:
        """Return True if the locked file was deleted, moved or replaced: its path is then unlocked.

        Raises:
            OSError: the status of the path cannot be read.
        """
        return self._descriptor is None or not _files.system.same(self._descriptor, self._path)

    def close(self) -> None:
        """Release the lock."""
        descriptor, self._descriptor = self._descriptor, None
        self.held = False
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


_open: weakref.WeakSet[Lock] = weakref.WeakSet()


class Turns:
    """Lock between threads of one process, which wait for one another.

    A forked child starts with the lock free, because the thread that held it does not exist in the
    child and would never release it.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        # Reentrant, because a signal handler may save during a save of the same thread.
        self._lock, self._process = threading.RLock(), os.getpid()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the lock until the `with` block ends."""
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            yield


def _forget() -> None:
    # A forked child, such as a data loader's worker, has the same open file, which would hold the lock
    # after its parent was killed.
    for lock in list(_open):
        lock.close()


os.register_at_fork(after_in_child=_forget)
