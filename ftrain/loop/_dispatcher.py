"""Dispatch of a run's events to its callbacks, and handling of their exceptions."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ftrain.checkpoint.save import remedy
from ftrain.loop._callback_identity import AttributeDigests, Named, matched
from ftrain.loop._callback_states import state_to_json
from ftrain.loop.callback import Action, Callback, CallbackWarning
from ftrain.loop.events import Event

__all__ = ["Dispatched", "Dispatcher"]


class Dispatched(NamedTuple):
    """Result of dispatching an event to the callbacks.

    Attributes:
        states: the states of all callbacks after the event; the same mapping if none changed.
        actions: the requested actions.
        failure: name and exception of the first callback that failed the run; `None` if none did.
    """

    states: Mapping[str, Any]
    actions: Sequence[Action]
    failure: tuple[str, Exception] | None


class Dispatcher:
    """Dispatch events to callbacks, in order.

    Attributes:
        options: digests of the attributes of callbacks that share a name, by the names of their states.
    """

    def __init__(self, callbacks: Sequence[Named], *, stores: bool = False) -> None:
        """Initialize the dispatcher.

        Args:
            callbacks: the callbacks with their names.
            stores: True if the run has a store, so that states must be storable in a checkpoint.
        """
        self._named = callbacks
        self._callbacks = {each.key: each.callback for each in callbacks}
        self._listeners: dict[type[Event], list[tuple[str, Callback]]] = {}
        self._unchecked = set(self._callbacks) if stores else set()
        self.options = {each.key: each.options for each in callbacks if not each.alone}

    def initial_states(
        self, saved: Mapping[str, Any], options: Mapping[str, AttributeDigests]
    ) -> dict[str, Any]:
        """Return the callbacks' states at the start of a run, from a checkpoint or from `init`.

        Args:
            saved: states from a checkpoint.
            options: digests, from the checkpoint, of the attributes of callbacks that shared a name.

        Raises:
            ValueError: saved states cannot be matched to callbacks.
            TypeError: a state has a type that a checkpoint cannot hold.
        """
        found = matched(self._named, saved, options)
        states = {
            key: saved[found[key]] if key in found else callback.init()
            for key, callback in self._callbacks.items()
        }
        if self._unchecked:
            for key, state in states.items():
                state_to_json(state, _called(key))
        unmatched = sorted(saved.keys() - found.values())
        if unmatched:
            warnings.warn(
                f"the checkpoint holds the states of callbacks that this trainer does not have: "
                f"{unmatched}. These states are dropped. To keep them, add these callbacks to the "
                "trainer.",
                CallbackWarning,
                stacklevel=5,
            )
        return states

    def listeners(self, kind: type[Event]) -> list[tuple[str, Callback]]:
        """Return the callbacks that listen for a kind of event, with their names."""
        found = self._listeners.get(kind)
        if found is None:
            found = self._listeners[kind] = [
                (name, callback)
                for name, callback in self._callbacks.items()
                if issubclass(kind, tuple(getattr(callback, "listens", (Event,))))
            ]
        return found

    def idle_until(self, kind: type[Event]) -> float:
        """Return the earliest `Event.seconds` at which a callback needs an event of this kind."""
        times = [getattr(each, "idle_until", 0.0) for _, each in self.listeners(kind)]
        return times[0] if len(times) == 1 else min(times, default=math.inf)  # saves 0.3 µs

    def monitors_evaluations(self) -> bool:
        """Return True if a callback's `monitor` attribute names an evaluation metric (`eval/...`)."""
        return any(
            str(getattr(callback, "monitor", "")).startswith("eval/")
            for callback in self._callbacks.values()
        )

    def dispatch(self, event: Event, states: Mapping[str, Any]) -> Dispatched | None:
        """Call the callbacks that listen for an event; return their new states and their actions.

        The state of a callback that raises does not change, and the other callbacks are still called.

        Returns:
            The result; `None` if no callback changed its state, requested an action or failed.
        """
        changed: dict[str, Any] = {}
        actions: list[Action] = []
        failure: tuple[str, Exception] | None = None
        for name, callback in self.listeners(type(event)):
            before = states[name]
            try:
                answer = callback(before, event)
                if type(answer) is not tuple or len(answer) != 2:
                    raise TypeError(
                        f"result of callback {name}: expected `(state, actions)`, got {answer!r}. "
                        "Return `state, ()` to request no action."
                    )
                requested = _checked(name, answer[1]) if answer[1] else ()
                if answer[0] is not before:
                    if name in self._unchecked:
                        state_to_json(answer[0], _called(name))  # checked once per callback
                        self._unchecked.discard(name)
                    changed[name] = answer[0]
                actions += requested
            except Exception as error:
                if getattr(callback, "on_error", "raise") == "warn":
                    _warn(name, error)
                else:
                    failure = failure or (name, error)
        if not changed and not actions and failure is None:  # at most steps; saves 0.5 µs
            return None
        return Dispatched({**states, **changed} if changed else states, actions, failure)


def _warn(name: str, error: Exception) -> None:
    last = traceback.extract_tb(error.__traceback__)[-1]
    advice = (remedy(error) if isinstance(error, OSError) else "") or "Correct the callback."
    warnings.warn(
        f"callback {name} raised {type(error).__name__}: {error} ({last.filename}:{last.lineno}). "
        f"The run continues. {advice}",
        CallbackWarning,
        stacklevel=3,
    )


def _called(key: str) -> str:
    return f"the state of callback {key}"


def _checked(name: str, actions: Iterable[Action]) -> list[Action]:
    found = list(actions)
    for action in found:
        if not isinstance(action, Action):
            raise TypeError(
                f"actions of callback {name}: expected instances of Action, such as Stop('done'), got "
                f"{action!r}. Return a list of actions."
            )
    return found
