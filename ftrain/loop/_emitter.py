"""Base class that sends a run's events to its callbacks, then to the consumer of `Trainer.events`."""

from __future__ import annotations

import warnings
from typing import Any

from ftrain.loop._actions import requested
from ftrain.loop._runtime import Runtime
from ftrain.loop.callback import Events
from ftrain.loop.events import BackwardEnd, Event, LoopWarning, Notice, Progress
from ftrain.loop.state import LoopState

__all__ = ["Emitter"]

_NORM = "grad_norm/"


class Emitter:
    """Base class of `Run` that emits events and stores the states and actions that callbacks return.

    Attributes:
        state: the state of the run.
        runtime: the parts of the run that no checkpoint holds.
    """

    def __init__(self, state: LoopState, runtime: Runtime) -> None:
        self.state, self.runtime = state, runtime

    def header(self) -> tuple[Progress, float, Any]:
        """Return the first fields of every event: progress, seconds and training state."""
        return self.state.progress, self.runtime.clock.total(), self.state.train

    def emit(self, event: Event, strict: bool = True) -> Events:
        """Send an event to the callbacks, then yield it to the consumer of `Trainer.events`."""
        self.dispatch(event, strict)
        if self.runtime.wanted(type(event)):
            yield from self.yield_event(event)

    def emit_norms(self, metrics: Any) -> Events:
        """Emit `BackwardEnd` if the step's metrics include a gradient norm per layer."""
        norms = {
            name.removeprefix(_NORM): getattr(value, "value", value)
            for name, value in getattr(metrics, "entries", metrics).items()
            if name.startswith(_NORM)
        }
        if norms:
            yield from self.emit(BackwardEnd(*self.header(), norms))

    def notice(self, message: str) -> Events:
        if not self.runtime.has_listener(Notice):
            warnings.warn(message, LoopWarning, stacklevel=2)
        yield from self.emit(Notice(*self.header(), message))

    def notice_once(self, message: str | None) -> Events:
        """Emit a `Notice` with a message, unless it is `None` or was emitted before."""
        if message is not None and message not in self.runtime.noticed:
            self.runtime.noticed.add(message)
            yield from self.notice(message)

    def dispatch(self, event: Event, strict: bool = True) -> None:
        """Call the callbacks with an event; store their new states and actions, or raise."""
        outcome = self.runtime.callbacks.dispatch(event, self.state.callbacks)
        if outcome is None:
            return
        states, actions, failure = outcome
        if states is not self.state.callbacks:
            self.state = self.state.replace(callbacks=states)
        if actions:
            self.state = requested(self.state, actions, event)
        if failure is not None and strict:
            name, error = failure
            self.runtime.phase = f"callback {name}"
            raise error

    def yield_event(self, event: Event) -> Events:
        """Yield an event to the consumer of `Trainer.events`; queue the actions that it sends back."""
        actions = yield event
        if actions:
            self.state = requested(self.state, actions, event)
