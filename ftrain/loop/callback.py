"""Callbacks: values that watch a run and ask for things. Their state is part of every checkpoint.

    class StopAt:                                     # a callback is any object with these two
        def __init__(self, loss): self.loss = loss
        def init(self): return {"seen": 0}            # its state: numbers, strings, lists, dicts
        def __call__(self, state, event):             # (its state, event) -> (its state, actions)
            if not isinstance(event, EvaluateEnd):
                return state, ()
            stop = [Stop("good enough")] if event.result.loss < self.loss else []
            return {"seen": state["seen"] + 1}, stop

At each event all callbacks look first; then what they asked for is done, whoever asked, in this
order: `Note`, `Replace`, `Accumulate`, `Evaluate` (whose events may ask for more), `Stop`, `Log`,
`Save`. So a checkpoint holds the evaluation before it, what early stopping made of it, and how far the
logs had got: a run that goes on from it repeats no row and loses none.

A plain class with methods `on_epoch_end(event)`, `on_batch_end(event)`, ... works too: see `adapt`.

Read next: `callbacks/`, where the shipped ones are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Generator, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from ftrain.loop import events as _events
from ftrain.loop._reserved import check_values
from ftrain.loop.events import Event, TrainBegin

__all__ = [
    "Accumulate",
    "Action",
    "Callback",
    "CallbackWarning",
    "Evaluate",
    "Events",
    "Log",
    "Note",
    "Replace",
    "Save",
    "Stop",
    "adapt",
]


@runtime_checkable
class Callback(Protocol):
    """What a callback must offer, and three attributes that it may have.

    `listens: tuple[type[Event], ...]`: the kinds of event it is called for; without it, all of them. A
    callback that does not listen for `BatchBegin` and `BatchEnd` costs nothing at a step.

    `name: str`: what its state is called in a checkpoint; without it, the name of its class. Of several
    with one name the second becomes `NAME_2`; a run that is resumed tells them apart by what they were
    made with, in whatever order they are listed, and raises where that does not say which is which.

    `on_error: "raise" | "warn"`: what an exception in it does. `"raise"`, the default: the run is saved
    and fails. `"warn"`, for what only reports: a `CallbackWarning`, the callback's state stays as it
    was, and the run goes on.
    """

    def init(self) -> Any:
        """Return the state before the first event.

        `None`, numbers, strings, and lists, tuples, sets and dicts of these: a checkpoint gives back
        what was saved, of the same types (the order of a dict's keys is not kept). Other types are
        refused by a run that has a store.
        """

    def __call__(self, state: Any, event: Event) -> tuple[Any, Iterable[Action]]:
        """The state after an event, and what is asked for (often `()`).

        `state` must be left as it was: return a new one. It should follow from the events alone, not
        from clocks or files, or an interrupted run and an undisturbed one will differ in it.
        """


class CallbackWarning(UserWarning):
    """A callback that only reports has raised; the run goes on."""


@dataclasses.dataclass(frozen=True)
class Action:
    """What a callback can ask for."""


#: A generator of events that is sent the actions which its consumer requests.
Events = Generator[Event, Iterable[Action] | None, None]


@dataclasses.dataclass(frozen=True)
class Note(Action):
    """Tell people something: a `Notice`, which the console and `train.log` show.

    Attributes:
        message: in words. Where no callback listens for a `Notice`, it is a `LoopWarning`.
    """

    message: str


@dataclasses.dataclass(frozen=True)
class Replace(Action):
    """Go on with another training state; the only way in which a callback changes one.

    Attributes:
        state: built like the present one (`event.state.replace(...)`). Two in one event: the later
            callback's wins.
    """

    state: Any


@dataclasses.dataclass(frozen=True)
class Accumulate(Action):
    """From the next step on, join this many of the loader's batches into one step.

    Attributes:
        k: batches a step, at least 1.
    """

    k: int


@dataclasses.dataclass(frozen=True)
class Evaluate(Action):
    """Evaluate now, on `eval_data`; asked for twice at one step it is done once.

    Attributes:
        state: evaluate this state instead of the present one, which stays: averaged weights, say. Its
            result joins the same row under `name/...`.
        name: of the evaluation: `""` is the main one, whose row has the split "eval".
    """

    state: Any = None
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Stop(Action):
    """End the run here, in good order.

    Attributes:
        reason: in words; it ends up in the result.
        resumable: whether `resume` goes on behind it: yes for a time limit, no for early stopping.
    """

    reason: str
    resumable: bool = False


@dataclasses.dataclass(frozen=True)
class Save(Action):
    """Write a checkpoint now, if there is a store; asked for twice at one step, it is written once.

    Attributes:
        tag: what it is for: "step", "best", "time".
        metrics: by which the store ranks it (`keep_best`).
    """

    tag: str = "step"
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Log(Action):
    """Hand values to the loggers: they join the row of this event if it has one, else make one.

    Attributes:
        values: flat names and numbers (0-d tensors are read here, in one go). A tensor with one axis has
            a value for each member of an ensemble, and is logged as metrics of the step are.
        split: of the row; `None`: the event's own row, "train" where it has none.

    Raises:
        ValueError: a value is called step, epoch, split or time, as columns of the row are.
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
    """A callback as it is, or one made of an object with methods such as `on_epoch_end(event)`.

    The methods are named after the events: `on_train_begin`, `on_epoch_begin`, `on_batch_begin`,
    `on_backward_end`, `on_batch_end`, `on_window_end`, `on_compile_begin`, `on_compile_end`,
    `on_evaluate_begin`, `on_evaluate_end`, `on_epoch_end`, `on_saved`, `on_logged`, `on_notice`,
    `on_failure`, `on_train_end`. Each may return an action, several, or nothing. With `state_dict()`
    and `load_state_dict(state)`, what it remembers is saved and given back.

    Raises:
        TypeError: it is neither; the message says which method was probably meant.

    Example:
        >>> class Printer:
        ...     def on_epoch_end(self, event):
        ...         print(event.result.loss)
        >>> adapt(Printer()).listens
        (<class 'ftrain.loop.events.EpochEnd'>,)
    """
    if isinstance(callback, type):
        raise TypeError(f"pass a callback, not its class: {callback.__name__}(...)")
    methods = [name for name in dir(callback) if name.startswith("on_") and name != "on_error"]
    unknown = [name for name in methods if name not in EVENTS and callable(getattr(callback, name))]
    is_callback = callable(callback) and callable(getattr(callback, "init", None))
    if not is_callback and (unknown or not methods):
        raise TypeError(_not_a_callback(callback, unknown))
    return callback if is_callback else _Methods(callback)


class _Methods:
    """An object with `on_...` methods, as a `Callback`."""

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
        asked = None if method is None else method(event)
        if asked is None:
            actions: Iterable[Action] = ()
        else:
            actions = (asked,) if isinstance(asked, Action) else asked
        return (self.target.state_dict() if self._keeps else state), actions


def _not_a_callback(callback: Any, unknown: list[str]) -> str:
    import difflib  # noqa: PLC0415  # only for a message

    what = type(callback).__name__
    if unknown:
        near = difflib.get_close_matches(unknown[0], EVENTS, 1, 0.5)
        meant = f" Probably meant: {near[0]}." if near else ""
        return f"{what}.{unknown[0]} is no event.{meant} There are {', '.join(EVENTS)}"
    return (
        f"{callback!r} is no callback: it has neither `init()` and `__call__(state, event)`, nor a "
        f"method such as `on_epoch_end(event)`. There are {', '.join(EVENTS)}"
    )
