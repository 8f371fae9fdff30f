"""Events around the first call of a compiled step, which may take half a minute.

It also checks for a compiler before a run writes anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.compile import Compiled
from ftrain.loop.callback import Events
from ftrain.loop.events import CompileBegin, CompileEnd, Progress

__all__ = ["Compiling", "check_compiler"]


def check_compiler(steps: Iterable[Any], state: Any) -> None:
    """Raise if a step is to be compiled and there is no compiler.

    Raises:
        CompilerMissingError: there is no C++ compiler; the message says how to get one.
    """
    devices = {leaf.device for leaf in tree.leaves(state) if isinstance(leaf, torch.Tensor)}
    if len(devices) == 1:  # with several devices, the compiler that each needs is not known yet
        for step in steps:
            if isinstance(step, Compiled):
                step.check_compiler(*devices)


class Compiling:
    """Emit `CompileBegin` before a step's first call and `CompileEnd` after it.

    Attributes:
        is_due: True if the next call is the first, which compiles.
    """

    def __init__(self, now: Any, what: str, step: Callable[..., Any]) -> None:
        self.is_due = isinstance(step, Compiled) and not step.n_compiles
        self._now, self._what, self._step = now, what, step
        self._began = 0.0
        self._end: CompileEnd | None = None

    def _header(self) -> tuple[Progress, float, Any]:
        header: tuple[Progress, float, Any] = self._now.header()
        return header

    def begin(self) -> Events:
        """Emit `CompileBegin`, and start the clock."""
        yield from self._now.show(CompileBegin(*self._header(), self._what))
        self._began = time.perf_counter()

    def done(self) -> None:
        """Dispatch `CompileEnd` to the callbacks."""
        self.is_due = False
        seconds = time.perf_counter() - self._began
        self._end = CompileEnd(*self._header(), self._what, seconds)
        self._now.tell(self._end)

    def end(self) -> Events:
        """Yield the `CompileEnd` that `done` created, if the generator's consumer wants it."""
        now, event = self._now, self._end
        if event is not None and now.wanted(CompileEnd):
            now.ask((yield event) or (), event)

    def timed(self, *args: Any) -> Any:
        """Call the step; after its first call, dispatch `CompileEnd`."""
        found = self._step(*args)
        if self.is_due:
            self.done()
        return found
