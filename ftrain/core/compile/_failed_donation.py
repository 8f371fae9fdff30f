"""Detection of writes that a donating program made before it failed.

Programs are Python functions that run line by line, and the traceback of an exception has the line that
raised it. If no earlier line writes to an argument, the arguments are unchanged. If a program cannot be
read, it is assumed to have written.

Read next: `_program_writes.py`, which finds the first line that writes.
"""

from __future__ import annotations

import linecache
import types
from collections.abc import Callable
from typing import TypeVar

from ftrain.core.compile._program_writes import ProgramModule

__all__ = ["before_writes", "may_have_written"]

F = TypeVar("F", bound=Callable[..., object])

_before: set[types.CodeType] = set()


def before_writes(fn: F) -> F:
    """Mark a function as called before any write: if it raises, the arguments are unchanged."""
    _before.add(fn.__code__)
    return fn


def may_have_written(error: BaseException) -> bool:
    """Return True if arguments may have been written to before this exception was raised."""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code in _before:
            return False
        if code.co_name == "forward" and code.co_filename.startswith("<eval_with_key>"):
            first = _first_copy(code.co_filename)
            return first is not None and trace.tb_lineno >= first
        if "reinterpret_tensor" in trace.tb_frame.f_globals:
            return _has_written(trace)
        trace = trace.tb_next
    return True  # the error was raised before or after a program


def _has_written(trace: types.TracebackType) -> bool:
    """Return True if an inductor program may have written to its arguments before it failed."""
    code = trace.tb_frame.f_code
    module = ProgramModule.read(code.co_filename)
    function = None if module is None else module.functions.get(code.co_name)
    if module is None or function is None or function.lineno != code.co_firstlineno:
        return True
    first = module.first_write(code.co_name)
    if first is None or trace.tb_lineno in module.blocks:
        return first is not None  # raised when a block was entered or left
    if trace.tb_lineno < first:
        return False
    called = trace.tb_next
    if trace.tb_lineno > first or called is None:
        return True
    # The error was raised in the first line that writes. If this line called a function of the same
    # module, and the call failed, the lines of that function decide.
    inside = called.tb_frame.f_code.co_filename == code.co_filename
    return not inside or _has_written(called)


def _first_copy(filename: str) -> int | None:
    """Return the number of the first line in an eager graph's code that writes to an argument.

    Copies write, and all of them come last. `None` if there are none; 0 if the code cannot be read.
    """
    lines = linecache.getlines(filename)
    if not lines:
        return 0
    return next((i for i, line in enumerate(lines, 1) if ".copy_.default(" in line), None)
