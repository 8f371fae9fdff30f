"""Text files to which a run appends lines, and which it truncates when it is resumed."""

from __future__ import annotations

import contextlib
import os
import pathlib

__all__ = ["append", "keep", "replace"]


def append(path: pathlib.Path, line: str) -> None:
    """Append a line; if that fails, for example on a full disk, remove the part that was written."""
    # Opened for each line (30 µs), so that moving or deleting the file during a run does no harm.
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
    """Truncate a file to its first n complete lines, and return them.

    A line that a crash cut short is not complete. The file is created if it does not exist.

    Raises:
        OSError: the path is not a regular file but, for example, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        raise OSError(
            f"{path}: expected a regular file, got another kind of file. Write the log to another path."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    size = 0
    with path.open("a+b") as file:
        file.seek(0)
        for line in file:
            if len(lines) == n or not line.endswith(b"\n"):
                break
            lines.append(line.decode(errors="replace").rstrip("\n"))
            size += len(line)
        file.truncate(size)
    return lines


def replace(path: pathlib.Path, text: str) -> None:
    """Replace the content of a file atomically: readers see the old text or the new one."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(text, encoding="utf-8", newline="")
    os.replace(draft, path)
