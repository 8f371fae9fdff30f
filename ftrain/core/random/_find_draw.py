"""Search for the line that drew from a global generator, by repeating the call under `sys.settrace`.

Used only before an error is raised, because it makes Python several times slower. The generators are
compared at every line of user code that runs, in this thread and in the threads that the call starts; a
line that changes the state of one of them has drawn from it.

Draws of the program's other threads must be excluded. If there are other threads, the generators are
compared at every instruction, and a change counts only if the instruction calls a function that may
draw. Other threads can run whenever torch releases the interpreter lock, in an operator (such as `x +
y`) or when a tensor is freed, and while a function of Python's own waits (`time.sleep`). At other
times they rarely run, because the interpreter's switch interval is raised, and a line counts only if
repeated searches find it too. Each time that an operator releases the lock to a thread that never
pauses, the search waits for one switch interval; a search that has waited too long ends without a
line.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import os
import random
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch

from ftrain.core import _torch
from ftrain.core._user_line import is_foreign, show_line
from ftrain.core.random import _generators, _keyed_operators
from ftrain.core.random._keyed_operators import here
from ftrain.core.random._refusal import BEARTYPE

__all__ = ["Draw", "find_draws", "is_alone"]

_MODE = _keyed_operators.__file__
_MORE = 7  # further searches if another thread may have drawn during the first one
_SWITCH_INTERVAL = 0.1  # seconds
_MAX_WAIT = 5.0  # seconds for which other threads may run while a search waits
# Modules of C functions that wait while other threads run, and neither draw nor call Python code.
_WAIT = frozenset(
    {"time", "posix", "_thread", "select", "_socket", "_ssl", "_queue", "zlib", "_hashlib"}
)
# Prefixes of the names of instructions that call C code directly. Other instructions call C code only
# for operators of tensors, which do not draw.
_CALLS = (
    *("CALL", "PRECALL", "FOR_ITER", "SEND", "GET_ITER", "UNPACK", "LIST_EXTEND", "SET_UPDATE"),
    *("DICT_", "BEFORE_WITH", "WITH_EXCEPT_START", "LOAD_SPECIAL", "INSTRUMENTED"),
)
_READ = frozenset({"get_state", "get_offset", "initial_seed"})  # methods of a generator
_NUMPY = os.path.dirname(np.__file__) + os.sep
_PYTHON = os.path.dirname(random.__file__) + os.sep


class _Here(threading.local):
    """State of the search in one thread.

    Attributes:
        at: the running line of user code.
        in_torch: True while the line runs C++ code of torch.
        below: True if the innermost frame is Python code of torch or ftrain, which draws nothing.
        may_draw: False if the running instruction cannot draw, or cannot draw in its remaining part.
        calls: a stack of `in_torch` values, one from before each running C function.
        returned: the frames that have returned since the instruction began, with their variables:
            freeing a tensor lets other threads run, so the frames are freed after a comparison.
    """

    at: tuple[FrameType, int] | None = None
    in_torch = False
    below = False
    may_draw = True

    def __init__(self) -> None:
        self.calls: list[bool] = []
        self.returned: list[FrameType] = []


class _Waited(BaseException):
    """Exception that ends a search because the search has waited too long for other threads."""


class Draw(NamedTuple):
    """Line of code that advanced global generators, and the names of the generators.

    Attributes:
        names: the generators, as `_generators.moved` names them.
        line: `  FILE:LINE in NAME` and the source line, of the innermost frame in user code.
    """

    names: tuple[str, ...]
    line: str


def is_alone() -> bool:
    """Return True if this is the only Python thread of the program, so that no other can draw."""
    return len(sys._current_frames()) == 1  # those not made by `threading` too


def find_draws(run: Callable[[], Any], marks: _generators.Marks) -> list[Draw]:
    """Repeat the call `run`; return the lines that advance a generator in every repetition, in order.

    Args:
        run: the call that has moved a generator; it is repeated.
        marks: the generators to compare, in any states.

    Returns:
        Lines of this thread, and of threads that `run` starts.
    """
    found = _search(run, marks)
    for _ in range(0 if is_alone() else _MORE):
        if not found:
            break
        again = {draw.line for draw in _search(run, marks)}
        found = [draw for draw in found if draw.line in again]
    return found


def _search(run: Callable[[], Any], marks: _generators.Marks) -> list[Draw]:
    tracer = _Tracer(marks)
    try:
        with tracer.tracing(), contextlib.suppress(Exception):
            run()
    except _Waited:
        return []
    return tracer.draws()


class _Tracer:
    """Trace function that compares the generators after each line of user code."""

    def __init__(self, marks: _generators.Marks) -> None:
        self._thread = threading.get_ident()
        self._has_others = not is_alone()
        self._has_started = False  # True if the call has started a thread
        self._at: tuple[FrameType, int] | None = None  # the running line of this thread
        self._here = _Here()
        self._last = _generators.read_again(marks)
        # For each generator, the draws that were not undone: number, states before the draw, and line.
        self._draws: dict[str, list[tuple[int, _generators.Marks, str]]] = {}
        self._count = 0
        self._waited = time.perf_counter() - time.thread_time()
        self._used = _time_of_others()

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        before = sys.gettrace(), threading.gettrace(), sys.getprofile(), sys.getswitchinterval()
        collects = gc.isenabled()
        gc.disable()  # a collection could free tensors at any line
        sys.setswitchinterval(max(before[3], _SWITCH_INTERVAL))
        here.search = self
        threading.settrace(self._trace)
        sys.setprofile(self._profile)
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before[0])
            sys.setprofile(before[2])
            threading.settrace(before[1])
            here.search = None
            sys.setswitchinterval(before[3])
            if collects:
                gc.enable()

    def draws(self) -> list[Draw]:
        """Return the draws found, in order, but not those undone later (`fork_rng`, checkpointing)."""
        names: dict[str, list[str]] = {}
        for _, name, line in sorted(
            (count, name, line) for name, draws in self._draws.items() for count, _, line in draws
        ):
            names.setdefault(line, []).append(name)
        return [Draw(tuple(dict.fromkeys(found)), line) for line, found in names.items()]

    def begin_operator(self) -> None:
        """Ignore the earlier draws of other threads; called before each operator."""
        if self._has_others and self._has_waited():
            raise _Waited
        self._forgive()  # `_profile` has already processed the frame of the mode

    def _has_waited(self) -> bool:
        """Return True if this thread has waited too long while other Python threads ran."""
        waited = time.perf_counter() - time.thread_time() - self._waited
        return waited > _MAX_WAIT and _time_of_others() - self._used > _MAX_WAIT

    def end_operator(self) -> None:
        """Ignore draws of other threads during an operator; called by `KeyedOperators`."""
        self._forgive()

    def _forgive(self) -> None:
        """Ignore draws that other threads made while torch had released Python's interpreter lock."""
        if self._has_others and not self._has_started:
            self._here.returned.clear()
            self._last = _generators.settled(self._last)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        local = self._here
        if threading.get_ident() != self._thread:  # a thread that the call has started
            self._has_started = True
            self._compare(may_be_torch=True)
            local.at = _place(frame) or self._at
            return self._trace
        if _is_below(frame.f_code.co_filename):  # its draws count for the user line that called it
            return None
        if local.below or not local.may_draw:
            self._forgive()
        else:
            self._compare()
        if event == "opcode":
            local.may_draw = frame.f_lasti in _calls(frame.f_code)
            return self._trace
        frame.f_trace_opcodes = self._has_others
        local.may_draw = not self._has_others or event == "return"  # then the caller continues
        local.in_torch = False
        local.at = self._at = _place(frame.f_back if event == "return" else frame)
        return self._trace

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        local = self._here
        if event == "c_call":
            if local.in_torch or local.below:
                self._forgive()
            else:
                self._compare()
            if self._has_others and _may_draw(arg, frame):
                self._settle(with_torch=True)
            local.calls.append(local.in_torch)
            local.in_torch = local.in_torch or _is_of_torch(arg)
        elif event in ("c_return", "c_exception") and local.calls:
            if local.in_torch or (local.below and not _may_draw(arg, frame)) or _root(arg) in _WAIT:
                self._forgive()
            else:
                self._compare(may_be_torch=_may_draw(arg, frame))
            local.in_torch = local.calls.pop()
            local.may_draw = local.may_draw and (not self._has_others or bool(local.calls))
        elif event in ("call", "return"):
            # A frame of the operator mode whose call did not pass the function mode was called by torch.
            by_torch = frame.f_code.co_filename == _MODE and _torch.function_mode_depth() > 0
            if local.below or by_torch:
                self._forgive()
            else:
                self._compare()
            if event == "return" and self._has_others:
                local.returned.append(frame)
            runs = frame if event == "call" else frame.f_back
            local.below = runs is not None and _is_idle(runs.f_code.co_filename)

    def _compare(self, may_be_torch: bool = False) -> None:
        """Record the running line as a draw if a generator has changed since the last comparison.

        Args:
            may_be_torch: True if the code that has run may draw from torch's generator or seed it. If
                False and the program has other threads, a change of torch's generator is due to one of
                them, because the operator mode keys the line's own draws.
        """
        names = _generators.moved_quietly(self._last)
        if may_be_torch or not self._has_others:
            names = _generators.moved(self._last)
        if names:
            before, self._last = self._last, _generators.read_again(self._last)
            at = self._here.at
            if at is not None:
                self._note(names, before, show_line(at[0].f_code, at[1]))
        if self._has_others:
            self._settle(may_be_torch)

    def _note(self, names: tuple[str, ...], before: _generators.Marks, line: str) -> None:
        for name in names:
            draws = self._draws.setdefault(name, [])
            for index, (_, state, _) in enumerate(draws):
                if name not in _generators.differing(state, self._last):
                    del draws[index:]  # the generator has its state before that draw again
                    break
            else:
                self._count += 1
                draws.append((self._count, before, line))

    def _settle(self, with_torch: bool) -> None:
        """Store the generators' current states for the next comparison; torch's only if `with_torch`."""
        self._here.returned.clear()
        if with_torch:
            self._last = _generators.read_again(self._last)
        # NumPy's and Python's are read last, because freeing torch's memory above lets other threads
        # run.
        self._last = _generators.settled(self._last)


def _time_of_others() -> float:
    """Return the processor time of the other Python threads, in seconds; 0 where /proc lacks it."""
    nanoseconds = 0
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            # Not time.pthread_getcpuclockid, which crashes if the thread has just ended.
            with contextlib.suppress(OSError):
                statistics = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
                nanoseconds += int(statistics.split()[0])
    return nanoseconds / 1e9


def _place(frame: FrameType | None) -> tuple[FrameType, int] | None:
    """Return the first frame of user code among `frame` and its callers, and the line that it runs.

    The callers end at `_search`, which calls the function to search; without such a frame: `None`.
    """
    while frame is not None and _is_below(frame.f_code.co_filename):
        frame = frame.f_back if frame.f_code is not _search.__code__ else None
    return None if frame is None else (frame, frame.f_lineno)


@functools.lru_cache(maxsize=4096)
def _calls(code: types.CodeType) -> frozenset[int]:
    """Return the offsets of the bytecode instructions that may call C functions, which may draw."""
    return frozenset(
        each.offset for each in dis.get_instructions(code) if each.opname.startswith(_CALLS)
    )


def _is_of_torch(function: Any) -> bool:
    """Return True for torch's C++ functions, except the methods of generators."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, torch.Generator):
        return False
    return isinstance(owner, torch.Tensor) or _root(function) == "torch"


def _may_draw(function: Any, caller: FrameType) -> bool:
    """Return True for C functions that may draw from a global generator or seed one."""
    if isinstance(getattr(function, "__self__", None), torch.Generator):
        return function.__name__ not in _READ
    known = sys.stdlib_module_names | {"torch", "numpy"}
    return not _is_below(caller.f_code.co_filename) and _root(function) not in known


def _root(function: Any) -> str:
    """Return the name of the top-level package that a C function belongs to."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__module__", None)
    if name is None and isinstance(owner, types.ModuleType):
        name = owner.__name__
    if name is None and owner is None:  # static methods do not have `__self__`
        name = repr(function).rpartition(" of ")[2]
    if name is None:
        name = getattr(function, "__objclass__", type(owner)).__module__
    return str(name).partition(".")[0]


@functools.lru_cache(maxsize=4096)
def _is_below(filename: str) -> bool:
    """Return True for a file of torch, ftrain, NumPy or Python's standard library."""
    return _is_idle(filename) or filename.startswith(_NUMPY) or filename == random.__file__


@functools.lru_cache(maxsize=4096)
def _is_idle(filename: str) -> bool:
    """Return True for a file whose Python code never draws: of torch, ftrain or the standard library.

    `random` of the standard library draws and is excluded.
    """
    if filename.startswith(BEARTYPE):
        return False
    is_python = filename.startswith(_PYTHON) and "site-packages" not in filename
    return is_foreign(filename) or (is_python and filename != random.__file__)
