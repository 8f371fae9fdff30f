"""Checks that files exist, with errors that suggest the most similar file name."""

from __future__ import annotations

import os
from pathlib import Path

from ftrain.core._nearest import nearest
from ftrain.core.errors import DataError

PathLike = str | os.PathLike[str]


def existing(path: PathLike) -> Path:
    """Return the path of an existing regular file; if it is missing, suggest a similar name."""
    found = Path(path)
    if found.is_dir():
        raise DataError(f"{found}: expected a file, got a directory. Name a file in it")
    if not found.exists():
        raise FileNotFoundError(f"file not found: {found}{_nearest(found)}")
    if not found.is_file():  # to open a pipe would wait for its writer
        raise DataError(
            f"{found}: expected a regular file, got a pipe, a device or a socket. Write its content to "
            "a file"
        )
    return found


def existing_folder(path: PathLike) -> Path:
    """Return the path of an existing folder; if it is missing, raise and suggest a similar name."""
    found = Path(path)
    if not found.exists():
        raise FileNotFoundError(f"directory not found: {found}{_nearest(found)}")
    if not found.is_dir():
        raise DataError(
            f"{found}: expected a directory, got a file. Name the directory that contains it"
        )
    return found


def decoded(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark."""
    try:
        return existing(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, f"{error.reason}, byte {error.start}") from None


def not_utf8(path: Path, reason: str) -> DataError:
    """Return the error for a file that is not UTF-8 text."""
    return DataError(
        f"{path}: expected text in UTF-8, got other bytes ({reason}). Convert it, for instance: iconv "
        f"--from-code latin1 --to-code utf-8 {path} > text.txt"
    )


def _nearest(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f". {parent} does not exist either; the working directory is {Path.cwd()}"
    near = nearest(path.name, os.listdir(parent))
    return f". Did you mean {parent / near}?" if near else f" in {parent.resolve()}"
