"""Locks that end with the process that holds them, however it ends; its children do not keep them."""

from __future__ import annotations

import os
import weakref

from ftrain.checkpoint import _files

__all__ = ["Lock"]


class Lock:
    """An exclusive lock on an open file or directory (`flock`).

    Attributes:
        held: whether it was to be had.
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
    def directory(path: str) -> Lock:
        """Lock a directory itself."""
        return Lock(_files.system.open_directory(path), path)

    @staticmethod
    def file(path: str) -> Lock:
        """Lock a file, which is made if it is not there."""
        return Lock(_files.system.open_lock(path), path)

    def close(self) -> None:
        """Let go."""
        descriptor, self._descriptor = self._descriptor, None
        self.held = False
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


_open: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forget() -> None:
    # A forked child (a data loader's worker) holds the same open file: it would keep the lock alive
    # after its parent was killed.
    for lock in list(_open):
        lock.close()


os.register_at_fork(after_in_child=_forget)
