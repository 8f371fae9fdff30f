"""Checks of files: existence, kind, damage detected by a reader, and size in memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftrain.core._available_memory import total_memory
from ftrain.core._nearest import nearest
from ftrain.core._words import one_line
from ftrain.core.errors import DataError

PathLike = str | os.PathLike[str]

#: Errors of the operating system, which do not mean that the content is damaged.
_OF_THE_SYSTEM = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE)

#: The largest compression ratio of zip and gzip (https://zlib.net/zlib_tech.html).
_DEFLATE = 1032


def existing(path: PathLike) -> Path:
    """Return the path of an existing regular file; if it is missing, suggest a similar name."""
    found = Path(path)
    if found.is_dir():
        raise DataError(f"{found}: expected a file, got a directory. Name a file in it.")
    if not found.exists():
        raise FileNotFoundError(f"file not found: {found}. {_nearest(found)}")
    if not found.is_file():  # opening a pipe would wait for a writer
        raise DataError(
            f"{found}: expected a regular file, got a pipe, a device or a socket. Write its content to "
            "a file."
        )
    return found


@contextmanager
def reading(path: Path, what: str = "it") -> Iterator[None]:
    """Convert the errors of a reader in a `with` block to `DataError` with the path.

    For a damaged file, parsers raise errors of any class: `zlib.error`, `TokenError`, `OverflowError`.
    """
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise _too_large(path, what, one_line(error)) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
            raise DataError(
                f"{path}: cannot be read: {error.strerror}. Check its permissions, and the disk."
            ) from None
        raise DataError(
            f"{path}: {what} is damaged: {one_line(error)}. Create or copy the file again."
        ) from None


def check_memory(path: Path, what: str, needed: int) -> None:
    """Raise `DataError` before unpacking content that needs more memory than the machine has."""
    if needed > (there := total_memory()):
        raise _too_large(path, what, f"{needed:,} of {there:,} bytes")


def check_deflated(packed: int, unpacked: int) -> None:
    """Raise `ValueError` if there are too few compressed bytes for the announced unpacked size."""
    if unpacked > _DEFLATE * max(packed, 1):
        raise ValueError(
            f"expected at most {_DEFLATE * max(packed, 1):,} bytes from {packed:,} compressed ones, got "
            f"{unpacked:,}"
        )


def _too_large(path: Path, what: str, needed: str) -> DataError:
    return DataError(
        f"{path}: expected content that fits in memory, got more for {what} ({needed}). Split the "
        "file, or store one array as .npy and read it with data.npy(path, mmap=True)."
    )


def existing_folder(path: PathLike) -> Path:
    """Return the path of an existing folder; if it is missing, raise and suggest a similar name."""
    found = Path(path)
    if not found.exists():
        raise FileNotFoundError(f"directory not found: {found}. {_nearest(found)}")
    if not found.is_dir():
        raise DataError(
            f"{found}: expected a directory, got a file. Name the directory that contains it."
        )
    return found


def decoded(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark."""
    path = existing(path)
    check_memory(path, "its text", 8 * path.stat().st_size)  # measured: 7.1 times the file's size
    with reading(path):
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise not_utf8(path, f"{error.reason}, byte {error.start}") from None


def not_utf8(path: Path, reason: str) -> DataError:
    """Return the error for a file that is not UTF-8 text."""
    return DataError(
        f"{path}: expected text in UTF-8, got other bytes ({reason}). Convert it, for instance with "
        f"`iconv --from-code latin1 --to-code utf-8 {path} > text.txt`."
    )


def _nearest(path: Path) -> str:
    """Return the sentence with the remedy for a missing path: a similar name, if there is one."""
    parent = path.parent
    if not parent.is_dir():
        return f"{parent} does not exist either, seen from {Path.cwd()}. Correct the path."
    near = nearest(path.name, os.listdir(parent))
    if near:
        return f"Did you mean {parent / near}?"
    return f"{parent.resolve()} has no file of a similar name. Correct the path."
