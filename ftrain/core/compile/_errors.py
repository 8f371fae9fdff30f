"""Formatting of compile errors."""

from __future__ import annotations

import linecache
import types
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ftrain.core._strides import contiguous_strides
from ftrain.core._user_line import current_line, user_line
from ftrain.core._words import dtype_and_shape
from ftrain.core.compile._reader import static_value

__all__ = [
    "call_site",
    "causes",
    "current_line",
    "describe",
    "describe_key",
    "first_line",
    "listed",
    "note_index",
    "user_line",
]


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def note_index(error: BaseException, function: str) -> None:
    """Add a note to an error about an index out of range, because that error does not name a tensor."""
    if "out of bounds" in str(error) or "out of range" in str(error):
        error.add_note(
            f"An index in a compiled program is out of range, perhaps a label or a token. Call "
            f"`{function}` itself, without ftrain.compile, with the same arguments, to see where."
        )


def call_site(code: types.CodeType, line: int) -> str:
    """Return `  FILE:LINE in NAME` and the source line of a call."""
    source = linecache.getline(code.co_filename, line).strip()
    return f"  {code.co_filename}:{line} in {code.co_name}\n    {source}".rstrip()


def describe(value: Any) -> str:
    """Format a leaf for a message: `float32[8, 3]`, or the repr of a static value."""
    if isinstance(value, torch.Tensor):
        return describe_spec((value.shape, value.dtype, value.device, value.stride()))
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def describe_spec(spec: tuple[Any, ...]) -> str:
    """Format a tensor's dtype and shape, and its device unless it is the CPU."""
    shape, dtype, device, stride = spec
    where = "" if device.type == "cpu" else f" on {device}"
    layout = "" if stride == contiguous_strides(shape) else f" with strides {list(stride)}"
    return f"{dtype_and_shape(dtype, shape)}{where}{layout}"


def describe_key(key: tuple[Any, ...]) -> str:
    """Format a leaf of a call's signature for a message: dtype and shape of a tensor, or a constant."""
    if len(key) == 4:
        return describe_spec(key)
    value = static_value(key)
    return repr(value) if isinstance(value, (float, complex)) else describe(value)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Return an exception and all its causes."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        todo += [current.__cause__, current.__context__, getattr(current, "inner_exception", None)]


def listed(changes: Sequence[str]) -> str:
    """Return an indented line for each of the first changes, and the number of the others."""
    more = f"\n  ... and {len(changes) - 8} more" if len(changes) > 8 else ""
    return "\n".join(f"  {change}" for change in changes[:8]) + more
