"""Warnings of a command, printed as `note: ...` without class names and source lines of ftrain.

Only the command line prints notes. A Python program receives warnings through Python's `warnings`, and
can filter them, record them and turn them into errors. Python's option `-W` and `PYTHONWARNINGS` filter
the notes of commands.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

from ftrain.core._terminal import printable, say
from ftrain.core._warning_notes import shown

__all__ = ["notes"]


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """Print each warning in a `with` block as a note, and each note once.

    If the last line of a note, its remedy, was printed before, only the first line is printed.
    """
    printed: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = str(message)
        if text not in printed:
            lines = text.splitlines() or [""]
            again = len(lines) > 1 and lines[-1] in printed
            printed.update((text, lines[-1]))
            _print(shown(lines[0] if again else text, category, filename, lineno))

    with warnings.catch_warnings():  # restores `warnings.showwarning` as well
        warnings.showwarning = show
        yield


def _print(note: str) -> None:
    if "tqdm" not in sys.modules or sys.stderr is None:
        say(note, error=True)
        return
    # A closed or full output must not end the run. `tqdm.write` clears an active bar first.
    with contextlib.suppress(OSError, ValueError):
        sys.modules["tqdm"].tqdm.write(printable(note), file=sys.stderr)
