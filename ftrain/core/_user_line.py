"""Line of the user's own code that caused an error."""

from __future__ import annotations

import contextlib
import functools
import linecache
import os
import pathlib
import traceback
from collections.abc import Iterable
from types import CodeType

import optree
import torch

__all__ = ["current_line", "is_foreign", "show", "show_line", "user_line"]

_FOREIGN = (
    *(
        os.path.dirname(os.path.abspath(str(module.__file__))) + os.sep
        for module in (torch, optree)
    ),
    str(pathlib.Path(__file__).resolve().parents[1]) + os.sep,
    contextlib.__file__,  # runs the contexts of torch
)
#: Names that Python gives to code typed at its prompt, or piped into it.
_TYPED = ("<stdin", "<python-input")


@functools.lru_cache(maxsize=4096)  # called for each stack frame of each operator
def is_foreign(filename: str) -> bool:
    """Return True if a file belongs to torch, optree, ftrain or contextlib, or is generated code."""
    return filename.startswith(("<", *_FOREIGN)) and not filename.startswith(_TYPED)


def user_line(frames: Iterable[traceback.FrameSummary]) -> str:
    """Return `  FILE:LINE in NAME` and the source line, of the innermost frame in user code."""
    ours = [frame for frame in frames if not is_foreign(frame.filename)]
    if not ours:
        return "  (no frame in user code)"
    return show(ours[-1])


def show(frame: traceback.FrameSummary) -> str:
    """Format a frame for a message: `  FILE:LINE in NAME` and the source line."""
    return f"  {frame.filename}:{frame.lineno} in {frame.name}\n    {frame.line}{_carets(frame)}"


def show_line(code: CodeType, line: int) -> str:
    """Format a line of running code as `show` does, but without `^` marks under the expression."""
    source = linecache.getline(code.co_filename, line).strip()
    place = f"  {code.co_filename}:{line} in {code.co_name}"
    return f"{place}\n    {source}" if source else place


def current_line() -> str:
    """Return the file, line and source of the user code that is running now."""
    return user_line(traceback.extract_stack())


def _carets(frame: traceback.FrameSummary) -> str:
    """Return a line of `^` marks under the expression, as in a traceback; empty if unknown."""
    start, end = getattr(frame, "colno", None), getattr(frame, "end_colno", None)
    if start is None or end is None or getattr(frame, "end_lineno", None) != frame.lineno:
        return ""
    original = linecache.getline(frame.filename, frame.lineno or 0)
    if not original.isascii():
        return ""
    indent = len(original) - len(original.lstrip())
    if end - start >= len(original.strip()):
        return ""
    return f"\n    {' ' * (start - indent)}{'^' * (end - start)}"
