"""Detection of random draws that use no key inside a `with keyed(key):` block of user code.

A block, unlike a function, cannot be run again to find the line that drew, so the error names the block.

Read next: `_watch.py`, the detection in pure functions.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import types
import warnings
from collections.abc import Iterator

import torch

from ftrain.core._user_line import user_line
from ftrain.core.random import _generators
from ftrain.core.random._find_draw import is_alone
from ftrain.core.random._keyed_operators import here
from ftrain.core.random._refusal import unkeyed_draw

__all__ = ["watched_block"]

# The files whose frames lie between a block and this file, and the largest number of stored records.
_BETWEEN = {__file__, contextlib.__file__, os.path.join(os.path.dirname(__file__), "keyed.py")}
_MANY = 4096


class _Block:
    """Record of one source location at which user code enters `keyed`.

    Attributes:
        code: the code object; this reference prevents the reuse of its id.
        needs_operators: True if the draws there need `KeyedOperators`; `None` before the first run.
    """

    def __init__(self, code: types.CodeType) -> None:
        self.code = code
        self.needs_operators: bool | None = None


_blocks: dict[tuple[int, int], _Block] = {}


@contextlib.contextmanager
def watched_block() -> Iterator[None]:
    """Raise at the end of the block if the state of a global generator has changed.

    The block runs under `KeyedOperators` the first time. Later it does so only if that mode keyed a draw
    in the first run, because the mode doubles the time of small operators. If the program has other
    threads, which may have drawn, a warning replaces the error. Does nothing inside a `Watch` or a
    trace.
    """
    if here.watching or torch.compiler.is_dynamo_compiling():
        yield
        return
    block = _block()
    operators, here.operators = here.operators, block.needs_operators is not False
    keyed, before = here.keyed, _generators.read(_generators.accelerator())
    try:
        yield
    finally:
        here.operators = operators
    names = _generators.moved(before)
    block.needs_operators = bool(block.needs_operators) or here.keyed > keyed or bool(names)
    if not names:
        return
    line = user_line(traceback.extract_stack())
    if is_alone():
        _generators.restore(before, names)
        raise unkeyed_draw(names, f"inside this block:\n\n{line}")
    message = f"by this thread or by another, during this block:\n\n{line}"
    warnings.warn(str(unkeyed_draw(names, message)), stacklevel=5)


def _block() -> _Block:
    """Return the record of the source location at which the caller enters `keyed`."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in _BETWEEN:
        frame = frame.f_back
    assert frame is not None
    place = id(frame.f_code), frame.f_lasti
    found = _blocks.get(place)
    if found is None:
        if len(_blocks) >= _MANY:
            _blocks.clear()
        found = _blocks[place] = _Block(frame.f_code)
    return found
