"""Callbacks of a run: dispatch of events, states of callbacks, and handling of their exceptions."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftrain.loop._identity import Named, Options, matched
from ftrain.loop._kept import encoded
from ftrain.loop.callback import Action, Callback, CallbackWarning
from ftrain.loop.events import Event

__all__ = ["Observers"]


class Observers:
    """Dispatch events to callbacks, in order, and hold their states.

    Attributes:
        states: `{name: state}`.
        options: digests of the attributes of callbacks that share a name, by the names of their states.
        failed: name and exception of the first callback that failed the run; `None` if none did.
    """

    def __init__(
        self,
        callbacks: Sequence[Named],
        saved: Mapping[str, Any] | None = None,
        options: Mapping[str, Options] | None = None,
        *,
        keeps: bool = False,
    ) -> None:
        """Initialize or restore the states of a run's callbacks.

        Args:
            callbacks: the callbacks with their names.
            saved: states from a checkpoint.
            options: digests, from the checkpoint, of the attributes of callbacks that shared a name.
            keeps: True if the run has a store, so that states must be storable in a checkpoint.

        Raises:
            ValueError: saved states cannot be matched to callbacks.
            TypeError: a state has a type that a checkpoint cannot hold.
        """
        self._callbacks = {each.key: each.callback for each in callbacks}
        self._hearing: dict[type[Event], list[tuple[str, Callback]]] = {}
        self._unchecked = set(self._callbacks) if keeps else set()
        self.options = {each.key: each.options for each in callbacks if not each.alone}
        self.failed: tuple[str, Exception] | None = None
        saved = saved or {}
        found = matched(callbacks, saved, options or {})
        self.states = {
            key: saved[found[key]] if key in found else callback.init()
            for key, callback in self._callbacks.items()
        }
        if keeps:
            for key, state in self.states.items():
                encoded(state, _called(key))
        lost = sorted(saved.keys() - found.values())
        if lost:
            warnings.warn(
                f"the checkpoint holds the states of callbacks that this trainer does not have: {lost}. "
                "They are dropped.",
                CallbackWarning,
                stacklevel=4,
            )

    def hearing(self, kind: type[Event]) -> list[tuple[str, Callback]]:
        """Return the callbacks that listen for a kind of event, with their names."""
        found = self._hearing.get(kind)
        if found is None:
            found = self._hearing[kind] = [
                (name, callback)
                for name, callback in self._callbacks.items()
                if issubclass(kind, tuple(getattr(callback, "listens", (Event,))))
            ]
        return found

    def monitor_evaluations(self) -> bool:
        """Return True if a callback monitors a metric of the evaluations."""
        return any(
            str(getattr(callback, "monitor", "")).startswith("eval/")
            for callback in self._callbacks.values()
        )

    def show(self, event: Event) -> list[Action]:
        """Dispatch an event to the callbacks that listen for it; return the requested actions.

        The state of a callback that raises does not change, and the other callbacks are still called.
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
                if answer[0] is not states[name] and name in self._unchecked:
                    encoded(answer[0], _called(name))  # once, before the first checkpoint
                    self._unchecked.discard(name)
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


def _called(key: str) -> str:
    return f"the state of callback {key}"


def _checked(actions: Iterable[Action]) -> list[Action]:
    found = list(actions)
    for action in found:
        if not isinstance(action, Action):
            raise TypeError(
                f"a callback returns `(state, actions)` with a list of actions such as "
                f"[Stop('done')]; found {action!r} among them"
            )
    return found
