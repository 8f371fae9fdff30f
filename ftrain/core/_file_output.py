"""Writing of a run's files that follows no symbolic links and leaves hard-linked files unchanged.

If a file of a run directory is a link, or has a second name (`cp -al runs/a runs/b`), writing to it
would change a file in another directory. New content is therefore written to a draft: a file with a
random name, created exclusively, synced and then renamed. Renaming replaces a link instead of its
target. A log is appended to only if it is a regular file; if its inode has another name, the log is
copied first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator

__all__ = ["append", "draft", "keep", "new_draft", "publish", "remove_drafts", "replace"]

_EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # which follows no link either
# O_NONBLOCK, because opening a pipe would wait for its other end.
_SHARED = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
_DRAFT = re.compile(r"\.draft-[0-9a-f]{16}(\.[^.]*)?")
_ABANDONED = 3600.0  # seconds after which the process that made a draft is assumed to be dead
_LONGEST = 64 << 20  # largest number of bytes of a line, because a file of zeros has no end of line
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def new_draft(path: pathlib.Path) -> pathlib.Path:
    """Create an empty file beside `path`, with a random hidden name and the same suffix; return it.

    Raises:
        OSError: it cannot be created; `path` is a device, a pipe or a directory.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise _irregular(path)
    found = path.with_name(f".draft-{secrets.token_hex(8)}{path.suffix}")
    with _named(found, path):
        os.close(os.open(found, _EXCLUSIVE, 0o666))
    return found


def publish(written: pathlib.Path, path: pathlib.Path) -> None:
    """Sync a draft (temporary file) to disk and rename it to `path`, replacing a file or link there."""
    descriptor = os.open(written, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(written, path)


@contextlib.contextmanager
def draft(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary file; it replaces `path` after the block, or is deleted if the block raises."""
    written = new_draft(path)
    try:
        with _named(written, path):
            yield written
            publish(written, path)
    finally:
        written.unlink(missing_ok=True)


def replace(path: pathlib.Path, content: str | bytes) -> None:
    """Replace the content of a file atomically: readers see the old content or the new one."""
    with draft(path) as written, _opened(written, os.O_WRONLY) as descriptor:
        _write(descriptor, content.encode() if isinstance(content, str) else content)


def remove_drafts(folder: pathlib.Path) -> None:
    """Delete the temporary files that killed processes left in a directory more than an hour ago."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            is_draft = _DRAFT.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            if is_draft and time.time() - entry.stat().st_mtime > _ABANDONED:
                os.unlink(entry.path)


def append(path: pathlib.Path, line: str) -> None:
    """Append a line; if that fails, for example on a full disk, remove the part that was written.

    Raises:
        OSError: the path is a link or a device, for example.
    """
    # The file is opened for each line (30 µs), so that moving or deleting it during a run does no harm.
    with _opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        if os.fstat(descriptor).st_nlink <= 1:
            _append(descriptor, line)
            return
    _replace_inode(path)
    with _opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        _append(descriptor, line)


def keep(path: pathlib.Path, n: int) -> list[str]:
    """Truncate a file to its first n complete lines, and return them.

    A line that a crash cut short is not complete. The file is created if it does not exist.

    Raises:
        OSError: the path is a link or a device, for example.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    size = 0
    with _opened(path, os.O_RDWR) as descriptor:
        shared = os.fstat(descriptor).st_nlink > 1
        with open(descriptor, "rb", closefd=False) as file:
            while len(lines) < n and (line := file.readline(_LONGEST)).endswith(b"\n"):
                lines.append(line.decode(errors="replace").rstrip("\n"))
                size += len(line)
            if shared:
                file.seek(0)
                replace(path, file.read(size))
        if not shared:
            os.ftruncate(descriptor, size)
    return lines


def sync(descriptor: int) -> None:
    """Sync an open file or directory to disk, unless its file system does not support that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


@contextlib.contextmanager
def _named(written: pathlib.Path, path: pathlib.Path) -> Iterator[None]:
    """In errors, replace a draft's random file name by `path`, so that repeated warnings are equal."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, os.fspath(written)):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


@contextlib.contextmanager
def _opened(path: pathlib.Path, flags: int) -> Iterator[int]:
    """Open a regular file, which is created if it does not exist."""
    try:
        descriptor = os.open(path, flags | _SHARED, 0o666)
    except OSError as error:
        # A link; a pipe without a reader.
        raise (_irregular(path) if error.errno in (errno.ELOOP, errno.ENXIO) else error) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _irregular(path)
        yield descriptor
    finally:
        os.close(descriptor)


def _append(descriptor: int, line: str) -> None:
    before = os.fstat(descriptor).st_size
    try:
        _write(descriptor, (line + "\n").encode())
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, before)
        raise


def _write(descriptor: int, content: bytes) -> None:
    data = memoryview(content)
    while data:
        data = data[os.write(descriptor, data) :]


def _replace_inode(path: pathlib.Path) -> None:
    """Replace a file with several hard links by a copy, so that writes leave the others unchanged."""
    with _opened(path, os.O_RDONLY) as source, draft(path) as written:
        with open(source, "rb", closefd=False) as file, written.open("wb") as copy:
            shutil.copyfileobj(file, copy)


def _irregular(path: pathlib.Path) -> OSError:
    kind = "symbolic link" if path.is_symlink() else "device, pipe or directory"
    return OSError(
        f"{path}: expected a regular file, got a {kind}. Delete it, or write to another path."
    )
