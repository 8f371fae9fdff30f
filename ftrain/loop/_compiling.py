"""The first call of a compiled step, announced: it may take half a minute of silence.

And whether it can succeed, looked at before anything is written.
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
    """Refuse what would fail at the first call of a step that is compiled.

    Raises:
        CompilerMissingError: there is no C++ compiler; the message says what to do.
    """
    devices = {leaf.device for leaf in tree.leaves(state) if isinstance(leaf, torch.Tensor)}
    if len(devices) == 1:  # else: what is made for which of them, nobody knows yet
        for step in steps:
            if isinstance(step, Compiled):
                step.check_compiler(*devices)


class Compiling:
    """Shows `CompileBegin` before a step's first call and `CompileEnd` behind it.

    Attributes:
        is_due: whether the next call is the first, which compiles.
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
        """It is about to be called."""
        yield from self._now.show(CompileBegin(*self._header(), self._what))
        self._began = time.perf_counter()

    def done(self) -> None:
        """It was called: tell the callbacks."""
        self.is_due = False
        seconds = time.perf_counter() - self._began
        self._end = CompileEnd(*self._header(), self._what, seconds)
        self._now.tell(self._end)

    def end(self) -> Events:
        """Tell the generator's consumer too, whose turn it was not yet."""
        now, event = self._now, self._end
        if event is not None and now.wanted(CompileEnd):
            now.ask((yield event) or (), event)

    def timed(self, *args: Any) -> Any:
        """The step, whose first call is the one that counts."""
        found = self._step(*args)
        if self.is_due:
            self.done()
        return found
