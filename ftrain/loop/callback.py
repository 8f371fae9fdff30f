"""Callbacks, which receive the events of a run and request actions; checkpoints hold their states.

    class StopAt:                                     # a callback is any object with these two
        def __init__(self, loss): self.loss = loss
        def init(self): return {"seen": 0}            # its state: numbers, strings, lists, dicts
        def __call__(self, state, event):             # (its state, event) -> (its state, actions)
            if not isinstance(event, EvaluateEnd):
                return state, ()
            stop = [Stop("good enough")] if event.result.loss < self.loss else []
            return {"seen": state["seen"] + 1}, stop

Each event is dispatched to all callbacks. The actions that they requested are then run in this order:
`Notify`, `Replace`, `Accumulate`, `Evaluate` (whose events may add requests), `Stop`, `Log`, `Save`. A
checkpoint therefore includes the evaluation at its step, the resulting state of early stopping, and the
length of the logs: a resumed run neither repeats nor loses a row.

A plain class with methods `on_epoch_end(event)`, `on_batch_end(event)`, ... works too: see `adapt`.

Read next: `callbacks/`, where the shipped ones are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Generator, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from ftrain.core._nearest import nearest
from ftrain.loop import events as _events
from ftrain.loop._reserved_names import check_values
from ftrain.loop.events import Event, TrainBegin

__all__ = [
    "Accumulate",
    "Action",
    "Callback",
    "CallbackWarning",
    "Evaluate",
    "Events",
    "Log",
    "Notify",
    "Replace",
    "Save",
    "Stop",
    "adapt",
]


@runtime_checkable
class Callback(Protocol):
    """Protocol of a callback, with six optional attributes.

    `listens: tuple[type[Event], ...]`: the kinds of event that it is called for; default: all kinds. A
    callback that does not listen for `BatchBegin` and `BatchEnd` adds no cost to a step.

    `idle_until: float`: the time, in `Event.seconds`, before which it need not be called for `BatchEnd`.
    Steps before that time are cheaper by some 3 µs if all callbacks that listen for `BatchEnd` are idle.
    A callback may change it while it is called; a change at another moment has an effect at the next row
    of the log or the end of the epoch at the latest.

    `name: str`: the name of its state in a checkpoint; default: the name of its class. If several
    callbacks share a name, the second is called `NAME_2`; a resumed run matches them to their states by
    their constructor arguments, in any order, and raises if the arguments do not distinguish them.

    `on_error: "raise" | "warn"`: the effect of an exception in the callback. `"raise"`, the default: the
    run is saved and fails. `"warn"`, for callbacks that only report: a `CallbackWarning` is issued, the
    callback's state does not change, and the run continues.

    `exclusive_files: Sequence[Path]`: the files that no other run may write at the same time; a second
    run with one of them raises `LogLockedError` before it writes.

    `write_note(note: str)`: called with the text of each warning that Python shows during the run.
    """

    def init(self) -> Any:
        """Return the callback's initial state, before the first event.

        The state consists of `None`, numbers, strings, and lists, tuples, sets and dicts of these: a
        checkpoint restores the same values and types (the order of a dict's keys is not kept). A run
        that has a store refuses other types.
        """

    def __call__(self, state: Any, event: Event) -> tuple[Any, Iterable[Action]]:
        """Handle an event: return the callback's new state and the actions to request, `()` for none.

        Do not modify `state`: return a new one. It should depend on the events only, not on clocks or
        files; otherwise an interrupted and resumed run differs from an uninterrupted one.
        """


class CallbackWarning(UserWarning):
    """Warning about an exception in a callback with `on_error="warn"`; the run continues."""


@dataclasses.dataclass(frozen=True)
class Action:
    """Base class of the actions that a callback can request."""


#: Generator that yields events and receives the actions that its consumer requests.
Events = Generator[Event, Iterable[Action] | None, None]


@dataclasses.dataclass(frozen=True)
class Notify(Action):
    """Emit a `Notice`, which the console and `train.log` print.

    Attributes:
        message: the text. If no callback listens for `Notice`, it is issued as a `LoopWarning`.
    """

    message: str


@dataclasses.dataclass(frozen=True)
class Replace(Action):
    """Replace the training state; a callback has no other way to change it.

    Attributes:
        state: a state of the same structure as the current one (`event.state.replace(...)`). If two
            callbacks request it at one event, the later one is used.
    """

    state: Any


@dataclasses.dataclass(frozen=True)
class Accumulate(Action):
    """Accumulate gradients over `k` batches of the loader in each step, from the next step on.

    Attributes:
        k: batches per step, at least 1.
    """

    k: int


@dataclasses.dataclass(frozen=True)
class Evaluate(Action):
    """Evaluate on `eval_data` at this step, at most once per step and name.

    Attributes:
        state: the state to evaluate instead of the current one, for example with averaged weights; the
            training state does not change. The result joins the same row under `name/...`.
        name: name of the evaluation; `""` is the main one, whose row has the split "eval".
    """

    state: Any = None
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Stop(Action):
    """End the run after this step, with a last checkpoint if the trainer has a store.

    Attributes:
        reason: the reason, which becomes `result.reason`.
        resumable: True if `resume` continues the run: True for a time limit, False for early stopping.
    """

    reason: str
    resumable: bool = False


@dataclasses.dataclass(frozen=True)
class Save(Action):
    """Write a checkpoint at this step, at most once per step, if the trainer has a store.

    Attributes:
        tag: the reason for the checkpoint: "step", "best", "time".
        metrics: the metrics by which the store ranks the checkpoint (`keep_best`).
    """

    tag: str = "step"
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Log(Action):
    """Log values in the row of this event, or in a new row if the event has none.

    Attributes:
        values: flat names and numbers (0-d tensors are read when the row is logged). A tensor with one
            axis holds a value for each member of an ensemble, and is logged like metrics of the step.
        split: the split of the row; `None`: the split of the event's row, or "train" if it has none.

    Raises:
        ValueError: a value is called step, epoch, split or time, which are columns of the row.
    """

    values: Mapping[str, Any]
    split: str | None = None

    def __post_init__(self) -> None:
        check_values(tuple(self.values))


EVENTS: dict[str, type[Event]] = {
    "on_" + re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower(): kind
    for kind in (getattr(_events, name) for name in _events.__all__)
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
}


def adapt(callback: Any) -> Callback:
    """Return a callback unchanged, or wrap an object with methods such as `on_epoch_end(event)`.

    The methods are named after the events: `on_train_begin`, `on_epoch_begin`, `on_batch_begin`,
    `on_backward_end`, `on_batch_end`, `on_window_end`, `on_compile_begin`, `on_compile_end`,
    `on_evaluate_begin`, `on_evaluate_end`, `on_epoch_end`, `on_saved`, `on_logged`, `on_notice`,
    `on_failure`, `on_train_end`. Each may return an action, several actions, or `None`. If the object
    has `state_dict()` and `load_state_dict(state)`, its state is saved in checkpoints and restored.

    Raises:
        TypeError: the object is not a callback and has no such method; the message suggests the method
            that was probably meant.

    Example:
        >>> class Printer:
        ...     def on_epoch_end(self, event):
        ...         print(event.result.loss)
        >>> adapt(Printer()).listens
        (<class 'ftrain.loop.events.EpochEnd'>,)
    """
    if isinstance(callback, type):
        raise TypeError(
            f"callbacks: expected a callback, got the class {callback.__name__}. Write "
            f"{callback.__name__}(...)."
        )
    methods = [name for name in dir(callback) if name.startswith("on_") and name != "on_error"]
    unknown = [name for name in methods if name not in EVENTS and callable(getattr(callback, name))]
    is_callback = callable(callback) and callable(getattr(callback, "init", None))
    if not is_callback and (unknown or not methods):
        raise TypeError(_not_a_callback(callback, unknown))
    return callback if is_callback else _Methods(callback)


class _Methods:
    """Adapter of an object with `on_...` methods to a `Callback`."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self._methods = {
            kind: getattr(target, name) for name, kind in EVENTS.items() if hasattr(target, name)
        }
        self._keeps = hasattr(target, "state_dict") and hasattr(target, "load_state_dict")
        kinds = list(self._methods)
        if self._keeps and TrainBegin not in kinds:
            kinds.append(TrainBegin)
        self.listens = tuple(kinds)
        self.name = str(getattr(target, "name", type(target).__name__))
        self.on_error = getattr(target, "on_error", "raise")

    def init(self) -> Any:
        return self.target.state_dict() if self._keeps else None

    def __call__(self, state: Any, event: Event) -> tuple[Any, Iterable[Action]]:
        if self._keeps and isinstance(event, TrainBegin) and event.resumed:
            self.target.load_state_dict(state)
        method = self._methods.get(type(event))
        requested = None if method is None else method(event)
        if requested is None:
            actions: Iterable[Action] = ()
        else:
            actions = (requested,) if isinstance(requested, Action) else requested
        return (self.target.state_dict() if self._keeps else state), actions


def _not_a_callback(callback: Any, unknown: list[str]) -> str:
    what = type(callback).__name__
    if unknown:
        near = nearest(unknown[0], EVENTS)
        remedy = f"Rename it to {near}." if near else "Rename it to one of these."
        return (
            f"{what}.{unknown[0]}: expected one of {', '.join(EVENTS)}, got {unknown[0]}. {remedy}"
        )
    return (
        "callbacks: expected an object with `init()` and `__call__(state, event)`, or with methods "
        f"such as `on_epoch_end(event)`, got {callback!r}. Define one of {', '.join(EVENTS)}."
    )
