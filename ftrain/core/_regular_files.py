"""Reading of files from untrusted sources: only regular files of bounded size are opened.

A pipe, a device or a sparse file of terabytes raises an `OSError` immediately, whose `strerror` names
the expected kind or size of file. Every file of a run directory is opened here, except those of
checkpoints (`ftrain/checkpoint/_files.py`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

__all__ = ["MOST_CONFIG", "MOST_JSON", "MOST_LOG", "read_json", "read_lines", "read_regular"]

#: Largest size in bytes of a configuration file, which a person writes.
MOST_CONFIG = 1 << 20

#: Largest size in bytes of a `result.json` or `data.json`.
MOST_JSON = 64 << 20

#: Largest size in bytes of a `metrics.jsonl`, which is read line by line.
MOST_LOG = 1 << 30

#: Largest size in bytes of a line; a row with digests of 85 leaves has 7,000.
_LONGEST_LINE = 16 << 20

_KINDS = (
    (stat.S_ISDIR, errno.EISDIR, "a directory"),
    (stat.S_ISFIFO, errno.EINVAL, "a pipe"),
    (stat.S_ISSOCK, errno.EINVAL, "a socket"),
    (stat.S_ISCHR, errno.EINVAL, "a device"),
    (stat.S_ISBLK, errno.EINVAL, "a device"),
)


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes; links to such files are followed.

    Raises:
        OSError: the file is missing, larger, or not a regular file.

    Example:
        >>> read_regular("/dev/null", most=100)
        Traceback (most recent call last):
            ...
        OSError: [Errno 22] expected a regular file, got a device: '/dev/null'
    """
    with _opened(path, most) as (file, size):
        return file.read(size)


def read_json(path: str | os.PathLike[str], most: int = MOST_JSON, **options: Any) -> Any:
    """Return the value in a JSON file.

    Args:
        path: the file.
        most: its largest size in bytes.
        options: options of `json.loads`.

    Raises:
        OSError: as for `read_regular`.
        ValueError: the content is not JSON in UTF-8, or is nested too deeply.
    """
    text = read_regular(path, most).decode("utf-8")
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("expected JSON with fewer nested levels") from None


def read_lines(path: str | os.PathLike[str], most: int = MOST_LOG) -> Iterator[str]:
    """Yield the lines of a text file, without line ends; a line beyond 16 MiB is skipped.

    A byte that is not UTF-8 becomes a replacement character.

    Raises:
        OSError: as for `read_regular`.
    """
    with _opened(path, most) as (file, size):
        remaining, skipping = size, False
        while remaining and (line := file.readline(min(_LONGEST_LINE, remaining))):
            remaining -= len(line)
            is_end = line.endswith(b"\n") or not remaining
            if is_end and not skipping:
                yield line.decode("utf-8", errors="replace").rstrip("\r\n")
            skipping = not is_end


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], most: int) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file; yield it with its size at this time, which a writer may increase later."""
    _check(os.stat(path), path, most)  # before opening, which may have effects on a device
    # O_NONBLOCK, because opening a pipe that has replaced the file would wait for a writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
    with os.fdopen(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        _check(found, path, most)
        yield file, found.st_size


def _check(found: os.stat_result, path: str | os.PathLike[str], most: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        code, kind = next(
            ((code, kind) for test, code, kind in _KINDS if test(found.st_mode)),
            (errno.EINVAL, "another kind of file"),
        )
        raise OSError(code, f"expected a regular file, got {kind}", os.fspath(path))
    if found.st_size > most:
        says = f"expected at most {most:,} bytes, got {found.st_size:,}"
        raise OSError(errno.EFBIG, says, os.fspath(path))
