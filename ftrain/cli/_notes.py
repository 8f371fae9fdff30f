"""Warnings of a command as notes on standard error, without category and source lines of ftrain.

Only the command line prints notes. A Python program receives warnings through Python's `warnings`, and
can filter them, record them and turn them into errors. Python's option `-W` and `PYTHONWARNINGS` filter
the notes of commands.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from typing import TextIO

from ftrain.core._terminal import printable, say

__all__ = ["notes", "shown"]

_PACKAGE = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\]+)")


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


def shown(message: str, category: type[Warning], filename: str, lineno: int) -> str:
    """Format a warning as a note that ends with a line of the user's code or a package's name.

    Example:
        >>> shown("the rate is 0", UserWarning, "model.py", 12)
        'note: the rate is 0 (model.py:12)'
        >>> shown("slow", UserWarning, "/usr/lib/python3/site-packages/torch/nn/x.py", 12)
        'note: slow (torch)'
    """
    package = _PACKAGE.search(filename)
    where = f" ({package[1].removesuffix('.py') if package else f'{_short(filename)}:{lineno}'})"
    ours = category.__module__.partition(".")[0] == "ftrain"
    if ours or (package is None and filename.startswith(_NOT_THE_USERS)):
        where = ""
    return f"note: {message.strip()}{where}"


#: Directories of ftrain and of Python's library.
_NOT_THE_USERS = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    sysconfig.get_path("stdlib") + os.sep,
)


def _short(filename: str) -> str:
    with contextlib.suppress(ValueError):  # on another drive than the current directory
        short = os.path.relpath(filename)
        return short if len(short) < len(filename) else filename
    return filename


def _print(note: str) -> None:
    if "tqdm" not in sys.modules or sys.stderr is None:
        say(note, error=True)
        return
    # A closed or full output must not end the run. `tqdm.write` clears an active bar first.
    with contextlib.suppress(OSError, ValueError):
        sys.modules["tqdm"].tqdm.write(printable(note), file=sys.stderr)
