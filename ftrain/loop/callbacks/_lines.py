"""Files of lines that a run adds to, and cuts back to where it resumes."""

from __future__ import annotations

import contextlib
import os
import pathlib

__all__ = ["append", "keep", "replace"]


def append(path: pathlib.Path, line: str) -> None:
    """One more line; where that fails (a full disk), nothing of it is left behind."""
    # Opened each time, 30 µs: a file that is moved, or deleted, in the midst of a run does no harm.
    with path.open("ab", buffering=0) as file:
        data, before = memoryview((line + "\n").encode()), file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def keep(path: pathlib.Path, n: int) -> list[str]:
    """Keep the first n whole lines of a file, or as many as there are; those kept.

    What a crash left of a line that was being written is no whole line. The file is made where there is
    none.

    Raises:
        OSError: it is no file of lines, but a device or a pipe, which may have no end.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file that lines could be added to")
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: list[str] = []
    size = 0
    with path.open("a+b") as file:
        file.seek(0)
        for line in file:
            if len(kept) == n or not line.endswith(b"\n"):
                break
            kept.append(line.decode(errors="replace").rstrip("\n"))
            size += len(line)
        file.truncate(size)
    return kept


def replace(path: pathlib.Path, text: str) -> None:
    """Another content, at once: readers see the old one or the new one."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(text, encoding="utf-8", newline="")
    os.replace(draft, path)
