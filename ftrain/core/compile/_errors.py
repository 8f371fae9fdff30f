"""What `compile` says when something stands in its way."""

from __future__ import annotations

import linecache
import os
import pathlib
import traceback
import types
from collections.abc import Iterable, Iterator
from typing import Any

import optree
import torch

__all__ = ["call_site", "causes", "describe", "describe_key", "first_line", "user_line"]


_FOREIGN = (
    *(
        os.path.dirname(os.path.abspath(str(module.__file__))) + os.sep
        for module in (torch, optree)
    ),
    str(pathlib.Path(__file__).resolve().parents[2]) + os.sep,
)


def is_foreign(filename: str) -> bool:
    """Whether a file belongs to torch, optree or ftrain, or is generated code."""
    return filename.startswith(("<", *_FOREIGN))


def user_line(frames: Iterable[traceback.FrameSummary]) -> str:
    """`  FILE:LINE in NAME` and the source line, of the innermost frame in the user's own code."""
    ours = [frame for frame in frames if not is_foreign(frame.filename)]
    if not ours:
        return "  (no frame in user code)"
    frame = ours[-1]
    return f"  {frame.filename}:{frame.lineno} in {frame.name}\n    {frame.line}{_carets(frame)}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def call_site(code: types.CodeType, line: int) -> str:
    """`  FILE:LINE in NAME` and the source line of a call."""
    source = linecache.getline(code.co_filename, line).strip()
    return f"  {code.co_filename}:{line} in {code.co_name}\n    {source}".rstrip()


def describe(value: Any) -> str:
    """A leaf as a message shows it: `float32[8, 3]`, or the repr of a static value."""
    if isinstance(value, torch.Tensor):
        return describe_spec((value.shape, value.dtype, value.device, value.stride()))
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def describe_spec(spec: tuple[Any, ...]) -> str:
    """A tensor's dtype and shape, its device where that is not the CPU."""
    shape, dtype, device, stride = spec
    where = "" if device.type == "cpu" else f" on {device}"
    layout = "" if stride == _contiguous(shape) else f" with strides {list(stride)}"
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}{where}{layout}"


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def describe_key(key: tuple[Any, ...]) -> str:
    """A tensor's spec or a static leaf's key, as a message shows it."""
    if len(key) == 4:
        return describe_spec(key)
    kind, value = key
    return repr(float.fromhex(value)) if kind is float else describe(value)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and all that it was raised from."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        todo += [current.__cause__, current.__context__, getattr(current, "inner_exception", None)]


def _carets(frame: traceback.FrameSummary) -> str:
    """Python's own marks under the expression, where it knows them."""
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
