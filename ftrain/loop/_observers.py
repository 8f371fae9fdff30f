"""The callbacks of a run: who hears what, their states, and what happens when one raises."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from ftrain.loop.callback import Action, Callback, CallbackWarning
from ftrain.loop.events import Event

__all__ = ["Observers"]


class Observers:
    """Shows events to callbacks, in order, and keeps their states.

    Attributes:
        states: `{name: state}`.
        failed: the first callback that raised, and what; the run must end.
    """

    def __init__(self, callbacks: Iterable[Callback], saved: Mapping[str, Any] | None) -> None:
        self._callbacks: dict[str, Callback] = {}
        for callback in callbacks:
            self._callbacks[self._unused(name_of(callback))] = callback
        self._hearing: dict[type[Event], list[tuple[str, Callback]]] = {}
        self.failed: tuple[str, Exception] | None = None
        saved = saved or {}
        self.states = {
            name: saved[name] if name in saved else callback.init()
            for name, callback in self._callbacks.items()
        }
        lost = sorted(saved.keys() - self.states.keys())
        if lost:
            warnings.warn(
                f"the checkpoint holds the states of callbacks that this trainer does not have: {lost}. "
                "They are dropped.",
                CallbackWarning,
                stacklevel=4,
            )

    def hearing(self, kind: type[Event]) -> list[tuple[str, Callback]]:
        """The callbacks that this kind of event is shown to, with their names."""
        found = self._hearing.get(kind)
        if found is None:
            found = self._hearing[kind] = [
                (name, callback)
                for name, callback in self._callbacks.items()
                if issubclass(kind, tuple(getattr(callback, "listens", (Event,))))
            ]
        return found

    def monitor_evaluations(self) -> bool:
        """Whether a callback follows a metric of the evaluations, and wants to know its name early."""
        return any(
            str(getattr(callback, "monitor", "")).startswith("eval/")
            for callback in self._callbacks.values()
        )

    def show(self, event: Event) -> list[Action]:
        """Show an event to all who listen; what they ask for.

        One that raises keeps its state, and the others are shown the event all the same.
        """
        asked: list[Action] = []
        states = self.states
        for name, callback in self.hearing(type(event)):
            try:
                answer = callback(states[name], event)
                if type(answer) is not tuple or len(answer) != 2:
                    raise TypeError(
                        f"a callback returns `(state, actions)`, with () where it asks for nothing; "
                        f"found {answer!r}"
                    )
                actions = _checked(answer[1]) if answer[1] else ()
                states[name] = answer[0]
                asked += actions
            except Exception as error:
                self._note(name, callback, error)
        return asked

    def _note(self, name: str, callback: Callback, error: Exception) -> None:
        if getattr(callback, "on_error", "raise") != "warn":
            self.failed = self.failed or (name, error)
            return
        last = traceback.extract_tb(error.__traceback__)[-1]
        warnings.warn(
            f"callback {name} raised {type(error).__name__}: {error} ({last.filename}:{last.lineno}); "
            "the run goes on",
            CallbackWarning,
            stacklevel=3,
        )

    def _unused(self, name: str) -> str:
        if name not in self._callbacks:
            return name
        return next(
            f"{name}_{i}" for i in range(2, 1 << 30) if f"{name}_{i}" not in self._callbacks
        )


def name_of(callback: Callback) -> str:
    """What a callback's state is called in a checkpoint."""
    return str(getattr(callback, "name", None) or type(callback).__name__)


def _checked(actions: Iterable[Action]) -> list[Action]:
    found = list(actions)
    for action in found:
        if not isinstance(action, Action):
            raise TypeError(
                f"a callback returns `(state, actions)` with a list of actions such as "
                f"[Stop('done')]; found {action!r} among them"
            )
    return found
