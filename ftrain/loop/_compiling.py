"""The first call of a compiled step, announced: it may take half a minute of silence."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ftrain.core.compile import Compiled
from ftrain.loop.events import CompileBegin, CompileEnd

if TYPE_CHECKING:
    from ftrain.loop._present import Events, Present

__all__ = ["Compiling"]


class Compiling:
    """Shows `CompileBegin` before a step's first call and `CompileEnd` behind it.

    Attributes:
        is_due: whether the next call is the first, which compiles.
    """

    def __init__(self, now: Present, what: str, step: Callable[..., Any]) -> None:
        self.is_due = isinstance(step, Compiled) and not step.n_compiles
        self._now, self._what, self._step = now, what, step
        self._began = 0.0
        self._end: CompileEnd | None = None

    def begin(self) -> Events:
        """It is about to be called."""
        yield from self._now.show(CompileBegin(*self._now.header(), self._what))
        self._began = time.perf_counter()

    def done(self) -> None:
        """It was called: tell the callbacks."""
        self.is_due = False
        seconds = time.perf_counter() - self._began
        self._end = CompileEnd(*self._now.header(), self._what, seconds)
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
