"""A file that must be there, and what to say when it is not."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from ftrain.core.errors import DataError

PathLike = str | os.PathLike[str]


def existing(path: PathLike) -> Path:
    """The path of a file, or an error that names the nearest one there is."""
    found = Path(path)
    if found.is_dir():
        raise DataError(f"{found} is a folder, not a file: name a file in it")
    if not found.exists():
        raise FileNotFoundError(f"there is no file {found}{_nearest(found)}")
    return found


def existing_folder(path: PathLike) -> Path:
    """The path of a folder, or an error that names the nearest one there is."""
    found = Path(path)
    if not found.exists():
        raise FileNotFoundError(f"there is no folder {found}{_nearest(found)}")
    if not found.is_dir():
        raise DataError(f"{found} is a file, not a folder: name the folder that it lies in")
    return found


def decoded(path: Path) -> str:
    """The text in a file of UTF-8 (a byte order mark is left out)."""
    try:
        return existing(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None


def not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """What to say of a file that is no text in UTF-8."""
    return DataError(
        f"{path} is no text in UTF-8 ({error.reason}, byte {error.start}). Convert it first, for "
        f"instance: iconv --from-code latin1 --to-code utf-8 {path} > text.txt"
    )


def _nearest(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f": the folder {parent} does not exist either (the current one is {Path.cwd()})"
    near = difflib.get_close_matches(path.name, os.listdir(parent), n=1)
    return f": did you mean {parent / near[0]}?" if near else f" in {parent.resolve()}"
