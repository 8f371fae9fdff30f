"""Directories written and deleted under hidden names, so that readers never see an incomplete one.

A writer that was killed leaves directories called `.tmp-...` or `.trash-...` that are not locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator

from ftrain.checkpoint import _files
from ftrain.checkpoint.locks import NO_LOCKS, Lock

__all__ = ["discard", "make_directories", "remove_tree", "workplace"]

# Strict, so that no directory of another program matches. Former versions put a name before the number.
_LEFTOVER = re.compile(r"\.(tmp|trash)-(.*-)?[0-9]+-[0-9a-f]{8}", re.DOTALL)
_TRIES = 10


def make_directories(path: str) -> None:
    """Create a directory and its parents, and sync them to disk."""
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        try:
            _files.system.make_directory(directory)
        except FileExistsError:  # another process has created it meanwhile
            if not os.path.isdir(directory):
                raise
        _files.system.sync_directory(os.path.dirname(directory))


@contextlib.contextmanager
def workplace(parent: str) -> Iterator[str]:
    """Yield a new temporary directory in `parent`, deleted at the end unless it was renamed.

    The directory is locked, to show other processes that it is in use. Temporary directories that dead
    writers left in `parent` are deleted first.
    """
    for _ in range(_TRIES):
        temporary = os.path.join(parent, _leftover("tmp"))
        _files.system.make_directory(temporary)
        try:
            with _locked(temporary, without_locks=True) as ours:
                if not ours:  # another process deleted the directory before it was locked
                    continue
                sweep(parent)
                yield temporary
        finally:
            remove_tree(temporary)
        return
    raise OSError(errno.EAGAIN, "other processes keep deleting the temporary directory", parent)


def discard(path: str) -> OSError | None:
    """Delete a checkpoint, after renaming it to a hidden name; return the error if that fails."""
    trash = os.path.join(os.path.dirname(path), _leftover("trash"))
    failure: OSError | None = None
    for _ in range(2):
        try:
            _files.system.rename(path, trash)
        except OSError as error:
            failure = error
            continue
        return remove_tree(trash)
    return failure


def remove_tree(path: str) -> OSError | None:
    """Delete a directory of files, retrying once; return the error if something remains.

    A link is deleted without its target.
    """
    failure: OSError | None = None
    for _ in range(2):
        failure = None
        try:
            if os.path.islink(path) or not os.path.isdir(path):
                _files.system.unlink(path)
                return None
            for name in _files.system.list(path):
                try:
                    _files.system.unlink(os.path.join(path, name))
                except IsADirectoryError:
                    remove_tree(os.path.join(path, name))
            _files.system.remove_directory(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            failure = error
            continue
        return None
    return failure


def sweep(directory: str) -> None:
    """Delete unlocked temporary directories, which dead writers left, from a directory."""
    with contextlib.suppress(OSError):
        for name in _files.system.list(directory):
            left = os.path.join(directory, name)
            if _LEFTOVER.fullmatch(name) and not os.path.islink(left):
                with contextlib.suppress(OSError), _locked(left) as dead:
                    if dead:
                        remove_tree(left)


@contextlib.contextmanager
def _locked(directory: str, *, without_locks: bool = False) -> Iterator[bool]:
    """Lock a directory in a `with` block; yield True if it is locked and still exists.

    On a file system without locks, yield `without_locks`: no process deletes drafts there.
    """
    try:
        lock = Lock.directory(directory)
    except OSError as error:
        if error.errno not in (errno.ENOENT, *NO_LOCKS):
            raise
        yield error.errno != errno.ENOENT and without_locks
        return
    with lock:
        yield lock.held and not lock.lost()


def _leftover(kind: str) -> str:
    return f".{kind}-{os.getpid()}-{secrets.token_hex(4)}"
