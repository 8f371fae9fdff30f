"""Tracebacks that show only the frames of the user's code, without those of ftrain and torch."""

from __future__ import annotations

import os
import sysconfig
import traceback

import ftrain

__all__ = ["trimmed"]

_OTHERS = tuple(
    os.path.dirname(path) if path.endswith(".py") else path
    for path in (
        ftrain.__file__,
        *(sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib")),
    )
)


def trimmed(error: BaseException, everything: bool = False) -> str:
    """Format an exception's traceback without frames of ftrain, installed packages and Python."""
    if everything:
        return "".join(traceback.format_exception(error)).rstrip()
    found = traceback.TracebackException.from_exception(error, compact=True)
    own = [frame for frame in found.stack if not frame.filename.startswith((*_OTHERS, "<"))]
    message = "".join(found.format_exception_only()).rstrip()
    said = error.args[0] if isinstance(error, KeyError) and error.args else None
    # A sentence instead of a key is printed without the quotes of `repr`.
    if isinstance(said, str) and " " in said:
        message = message.replace(repr(said), said, 1)
    hint = "(--traceback shows every frame)"
    if not own:
        return f"{message}\n{hint}"
    trace = "".join(traceback.StackSummary.from_list(own).format())
    return f"Traceback, only the lines of your own code:\n{trace}{message}\n{hint}"
