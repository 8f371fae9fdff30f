"""Which line moved a global generator: the call, run once more under a trace function.

Only on the way to an error, for it makes Python several times slower. The generators are compared at
every line of user code that runs, in this thread and in the threads that the call starts; a line after
which one of them holds another state has drawn from it. Draws of other threads are told apart: they
hardly run meanwhile (the interpreter's switch interval is raised), what they draw while an operator runs
without the interpreter's lock is left out, and a line counts only if a second search finds it again.
"""

from __future__ import annotations

import contextlib
import functools
import linecache
import os
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch

from ftrain.core import _torch
from ftrain.core._user_line import is_foreign
from ftrain.core.random import _generators
from ftrain.core.random._keyed_operators import here

__all__ = ["Draw", "find_draw", "is_alone"]

# Every call of a function of torch from Python under `keyed` comes by here.
_FUNCTION_MODE = (os.path.join(os.path.dirname(__file__), "keyed.py"), "__torch_function__")
_READ = frozenset({"get_state", "get_offset", "initial_seed"})  # methods of a generator
_NUMPY = os.path.dirname(np.__file__) + os.sep
_PYTHON = os.path.dirname(random.__file__) + os.sep


class _Here(threading.local):
    """Of one thread.

    Attributes:
        at: the line of user code that runs.
        in_torch: whether code of torch in C++ runs, which was called since that line began.
        calls: the values of `in_torch` around the functions in C that run.
    """

    at: tuple[FrameType, int] | None = None
    in_torch = False

    def __init__(self) -> None:
        self.calls: list[bool] = []


class Draw(NamedTuple):
    """A line that moved global generators.

    Attributes:
        names: the generators, as `_generators.moved` names them.
        line: `  FILE:LINE in NAME` and the source line, of the innermost frame in user code.
    """

    names: tuple[str, ...]
    line: str


def is_alone() -> bool:
    """Return True if the program has no other thread of Python, which could draw as well."""
    return len(sys._current_frames()) == 1  # those not made by `threading` too


def find_draw(run: Callable[[], Any], marks: _generators.Marks) -> Draw | None:
    """Run `run` once more, or twice; return the first line that moves a generator.

    Args:
        run: the call that has moved one.
        marks: the generators to compare, in any states.

    Returns:
        `None` if no line of this thread, or of a thread that `run` starts, moves one.
    """
    first = _search(run, marks)
    if first is None or is_alone():
        return first
    second = _search(run, marks)
    return first if second is not None and second.line == first.line else None


def _search(run: Callable[[], Any], marks: _generators.Marks) -> Draw | None:
    tracer = _Tracer(marks)
    with tracer.tracing(), contextlib.suppress(Exception):
        run()
    return tracer.first()


class _Tracer:
    """A trace function that compares the generators after each line of user code."""

    def __init__(self, marks: _generators.Marks) -> None:
        self._thread = threading.get_ident()
        self._has_others = not is_alone()
        self._is_alone = True  # the call has started no thread
        self._at: tuple[FrameType, int] | None = None  # the line of this thread
        self._here = _Here()
        self._last = _generators.read_again(marks)
        # By generator: the draws that were not undone, each with the states before it.
        self._draws: dict[str, list[tuple[int, _generators.Marks, str]]] = {}
        self._count = 0

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        before = sys.gettrace(), threading.gettrace(), sys.getprofile(), sys.getswitchinterval()
        sys.setswitchinterval(60)
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

    def first(self) -> Draw | None:
        """The first draw that was not undone (by `torch.random.fork_rng`, or by checkpointing)."""
        draws = [(draws[0][0], name, draws[0][2]) for name, draws in self._draws.items() if draws]
        if not draws:
            return None
        line = min(draws)[2]
        return Draw(tuple(name for _, name, found in draws if found == line), line)

    def begin_operator(self) -> None:
        """Called by an operator mode before it runs an operator, whose own draws it keys or refuses."""
        # Where function modes stand, Python comes by there first.
        if self._here.in_torch or _torch.function_mode_depth():
            self._forgive()
        else:
            self._compare(own=False)

    def end_operator(self) -> None:
        """Called by an operator mode after an operator."""
        self._forgive()

    def _forgive(self) -> None:
        """What moved while torch ran, without the interpreter's lock, is another thread's doing."""
        if self._is_alone:
            fresh = _generators.read_again(self._last._replace(own=()))
            self._last = fresh._replace(own=self._last.own)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        local = self._here
        if threading.get_ident() != self._thread:  # one that the call started
            self._is_alone = False
            self._compare(may_be_torch=True)
            local.at = _place(frame) or self._at
            return self._trace
        if _is_below(frame.f_code.co_filename):  # its draws are those of the line that called it
            code = frame.f_code
            if not local.in_torch and (code.co_filename, code.co_name) == _FUNCTION_MODE:
                self._compare()
            return None
        self._compare()
        local.in_torch = False
        local.at = self._at = _place(frame.f_back if event == "return" else frame)
        return self._trace

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        local = self._here
        if event == "c_call":
            if not local.in_torch:
                self._compare()
            local.calls.append(local.in_torch)
            local.in_torch = local.in_torch or _is_of_torch(arg)
        elif event in ("c_return", "c_exception") and local.calls:
            if local.in_torch:
                self._forgive()
            else:
                self._compare(may_be_torch=_may_draw(arg, frame))
            local.in_torch = local.calls.pop()

    def _compare(self, *, own: bool = True, may_be_torch: bool = False) -> None:
        """Note the line if a generator has moved.

        Args:
            own: compare the program's own generators too.
            may_be_torch: what has run may draw from torch's generator, or seed it. Else another thread
                of the program has, if there is one: the operator mode keys the draws of a line.
        """
        before = self._last if own else self._last._replace(own=())
        names = _generators.moved(before)
        # In any case: other threads may have drawn while torch read its state.
        self._last = _generators.read_again(before)._replace(own=self._last.own)
        if not names:
            return
        if "own" in names:
            self._last = _generators.read_again(self._last)
        if self._has_others and not may_be_torch:
            names = tuple(name for name in names if name not in ("torch", "device"))
        if self._here.at is None:  # before the first line
            return
        line = _line(self._here.at)
        for name in names:
            draws = self._draws.setdefault(name, [])
            for index, (_, state, _) in enumerate(draws):
                if name not in _generators.moved(state):  # back where it was before that draw
                    del draws[index:]
                    break
            else:
                self._count += 1
                draws.append((self._count, before, line))


def _place(frame: FrameType | None) -> tuple[FrameType, int] | None:
    """The line that runs in the innermost frame of user code."""
    while frame is not None and _is_below(frame.f_code.co_filename):
        frame = frame.f_back
    return None if frame is None else (frame, frame.f_lineno)


def _line(place: tuple[FrameType, int]) -> str:
    code, number = place[0].f_code, place[1]
    source = linecache.getline(code.co_filename, number).strip()
    return f"  {code.co_filename}:{number} in {code.co_name}\n    {source}"


def _is_of_torch(function: Any) -> bool:
    """Return True for functions of torch in C++, except the methods of generators."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, torch.Generator):
        return False
    return isinstance(owner, torch.Tensor) or _root(function) == "torch"


def _may_draw(function: Any, caller: FrameType) -> bool:
    """Return True for functions in C that may draw from torch's generator, or seed it."""
    if isinstance(getattr(function, "__self__", None), torch.Generator):
        return function.__name__ not in _READ
    known = sys.stdlib_module_names | {"torch", "numpy"}
    return not _is_below(caller.f_code.co_filename) and _root(function) not in known


def _root(function: Any) -> str:
    """The package that a function in C belongs to."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__module__", None)
    if name is None and isinstance(owner, types.ModuleType):
        name = owner.__name__
    if name is None and owner is None:  # static methods keep their owner to themselves
        name = repr(function).rpartition(" of ")[2]
    if name is None:
        name = getattr(function, "__objclass__", type(owner)).__module__
    return str(name).partition(".")[0]


@functools.lru_cache(maxsize=4096)
def _is_below(filename: str) -> bool:
    """Return True for code that user code calls: torch, ftrain, NumPy and Python's own."""
    is_python = filename.startswith(_PYTHON) and "site-packages" not in filename
    return is_foreign(filename) or is_python or filename.startswith(_NUMPY)
