"""Formatting of a warning as one line for a user, without its category and lines of ftrain."""

from __future__ import annotations

import contextlib
import os
import re
import sysconfig

__all__ = ["shown"]

_PACKAGE = re.compile(r"[/\\](?:site|dist)-packages[/\\]([^/\\]+)")


def shown(message: str, category: type[Warning], filename: str, lineno: int) -> str:
    """Format a warning as a note that names the user's file and line, or the package that warned.

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
    with contextlib.suppress(ValueError):  # another drive
        short = os.path.relpath(filename)
        return short if len(short) < len(filename) else filename
    return filename
