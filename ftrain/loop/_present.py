"""Mutable state of an active run, and its pending actions.

Read next: `_run.py`, which advances it step by step.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.loop._clock import Clock
from ftrain.loop._compiling import Compiling
from ftrain.loop._data import length
from ftrain.loop._evaluate import evaluate
from ftrain.loop._keeper import Keeper
from ftrain.loop._ledger import Ledger
from ftrain.loop._members import expanded, statistics
from ftrain.loop._observers import Observers
from ftrain.loop._parts import Parts
from ftrain.loop._running import Running
from ftrain.loop._signals import Signals
from ftrain.loop.callback import (
    Accumulate,
    Action,
    Evaluate,
    Events,
    Log,
    Note,
    Replace,
    Save,
    Stop,
)
from ftrain.loop.events import (
    EpochEnd,
    EvaluateBegin,
    EvaluateEnd,
    Event,
    Logged,
    LoopWarning,
    Notice,
    Progress,
    Saved,
)
from ftrain.loop.state import LoopState

__all__ = ["Present"]

_ORDER: tuple[type[Action], ...] = (Note, Replace, Accumulate, Evaluate, Stop, Log, Save)
_ROW: dict[type[Event], str] = {EvaluateEnd: "eval", EpochEnd: "train_epoch"}
_MOST_ROUNDS = 100


class Present:
    """Mutable state of an active run.

    Attributes:
        state: the training state; `None` once it is lost.
        progress: the progress of the run.
        cursor: the position in the training data, after the last batch that was trained on.
        ledger: metrics of the window and the epoch.
        keeper: checkpoints.
        observers: callbacks and their states.
        signals: the signal handler.
        history: results so far.
        todo: pending actions.
        settled: the last step whose scheduled work and requested actions are complete.
        evaluated: names of the evaluations that were done at this step.
        twice: `(split, name)` of values that shared a name in a row and were reported in a notice.
        where: the phase named if an exception is raised.
        wanted: a predicate for the kinds of event that the generator's consumer wants.
    """

    def __init__(self, parts: Parts, loop: LoopState, observers: Observers, resumed: bool) -> None:
        self.parts, self.observers = parts, observers
        self.clock = Clock()
        self.ledger = Ledger(loop, self.clock)
        self.keeper = Keeper(parts.store, loop, resumed)
        self.signals = Signals()
        self.state: Any = loop.train
        self.progress = loop.progress
        self.cursor = loop.cursor or parts.train_data.start()
        self.history = list(loop.history)
        self.accumulate, self.micro_batches = loop.accumulate, loop.micro_batches
        self.stop, self.over = loop.stop, loop.over
        self.todo = list(loop.todo)
        self.settled = None if loop.due else loop.progress.step
        self._before: _Before | None = None
        self.evaluated: set[str] = set()
        self.twice: set[tuple[str, str]] = set()
        self.where = "data"
        self.wanted: Callable[[type[Event]], bool] = lambda kind: False

    def header(self) -> tuple[Progress, float, Any]:
        """Return the fields that every event begins with."""
        return self.progress, self.clock.total(), self.state

    def heard(self, kind: type[Event]) -> bool:
        return bool(self.observers.hearing(kind)) or self.wanted(kind)

    def show(self, event: Event, strict: bool = True) -> Events:
        self.tell(event, strict)
        if self.wanted(type(event)):
            self.ask((yield event) or (), event)

    def tell(self, event: Event, strict: bool = True) -> None:
        """Dispatch an event to the callbacks, and add their requests to the pending actions."""
        observers = self.observers
        asked = observers.show(event)
        if asked:
            self.ask(asked, event)
        if observers.failed is not None:
            (name, error), observers.failed = observers.failed, None
            if strict:
                self.where = f"callback {name}"
                raise error

    def ask(self, actions: Iterable[Action], event: Event) -> None:
        self.todo += [_checked(action, event) for action in actions]

    def notice(self, message: str) -> Events:
        if not self.heard(Notice):
            warnings.warn(message, LoopWarning, stacklevel=2)
        yield from self.show(Notice(*self.header(), message))

    def begin_boundary(self) -> None:
        """Record the state of the run before the scheduled work of a step."""
        self.evaluated = set()
        self._before = self._as_before()

    def end_boundary(self) -> None:
        """Mark the scheduled work of this step as complete."""
        self._before, self.settled = None, self.progress.step

    def do(self) -> Events:
        """Run the pending actions, in order; an evaluation that a signal interrupts stays pending."""
        for _ in range(_MOST_ROUNDS):
            if not self.todo:
                return
            self.todo.sort(key=lambda action: _ORDER.index(type(action)))
            action = self.todo[0]
            if isinstance(action, Evaluate):
                if not (yield from self._evaluate(action)):
                    yield from self.log()
                    return
            elif isinstance(action, Log):
                yield from self.log()
            elif isinstance(action, Note):
                self.todo.pop(0)
                yield from self.notice(action.message)
            elif isinstance(action, Save):
                saves, self.todo = [each for each in self.todo if isinstance(each, Save)], []
                metrics = {name: x for save in saves for name, x in save.metrics.items()}
                yield from self.save(saves[-1].tag, metrics)
            else:
                self.todo.pop(0)
                self._change(action)
        raise RuntimeError(
            f"callbacks asked for more than {_MOST_ROUNDS} things at step {self.progress.step}: one "
            f"answers its own request, such as a Log at Logged. Left: {self.todo[:3]}"
        )

    def _change(self, action: Action) -> None:
        if isinstance(action, Replace):
            difference = tree.first_difference(self.state, action.state)
            if difference is not None:
                raise ValueError(f"Replace with a state that is built otherwise: {difference}")
            self.state = action.state
        elif isinstance(action, Accumulate):
            self.accumulate = action.k
        elif isinstance(action, Stop):
            self.stop = self.stop or action

    def _evaluate(self, action: Evaluate) -> Generator[Any, Any, bool]:
        """Evaluate; return False if a signal interrupted the evaluation."""
        name, parts = action.name, self.parts
        if name in self.evaluated:
            self.todo.pop(0)
            return True
        if parts.eval_data is None or parts.eval_step is None:
            missing = "eval_data" if parts.eval_data is None else "an eval_step"
            raise ValueError(f"a callback asked for an evaluation, but the run has no {missing}")
        self.where = "evaluate"
        before = dict(self.observers.states)
        yield from self.show(EvaluateBegin(*self.header(), name, length(parts.eval_data)))
        eval_step, compiled = parts.eval_step, Compiling(self, "evaluation step", parts.eval_step)
        if compiled.is_due:
            yield from compiled.begin()
            eval_step = compiled.timed
        with self.clock.paused() as pause:
            found = evaluate(
                eval_step,
                self.state if action.state is None else action.state,
                parts.eval_data,
                parts.count,
                # An evaluation of another state cannot be saved and resumed, so it is completed.
                lambda: action.state is None and self.signals.received is not None,
            )
        yield from compiled.end()
        if found is None:
            self.observers.states = before  # a resumed run starts the evaluation again
            return False
        self.todo.pop(0)
        self.evaluated.add(name)
        split = f"eval/{name}" if name else "eval"
        epoch, n, *_ = self.progress
        result = found.result(split, epoch, n, pause.seconds)
        self.history.append(result)
        prefix = f"{name}/" if name else ""
        row = {f"{prefix}{key}": value for key, value in result.values().items()}
        self.todo.append(Log(row, "eval"))
        yield from self.show(EvaluateEnd(*self.header(), result, name))
        return True

    def log(self) -> Events:
        rows: dict[str, dict[str, float]] = {}
        twice: list[tuple[str, str]] = []
        for action in self.todo:
            if isinstance(action, Log):
                values = _numbers(action.values)
                row = rows.setdefault(action.split or "train", {})
                for name in row.keys() & values.keys():
                    if repr(row[name]) != repr(values[name]):
                        twice.append((action.split or "train", name))
                row.update(values)
        self.todo = [action for action in self.todo if not isinstance(action, Log)]
        for split, name in sorted({*twice} - self.twice):
            self.twice.add((split, name))
            yield from self.notice(
                f"two values of one row of {split!r} are called {name!r}, and the later one is logged: "
                "rename one"
            )
        for split, row in rows.items():
            yield from self.show(Logged(*self.header(), split, row))

    def save(self, tag: str, metrics: Any, failed: bool = False) -> Events:
        """Write a checkpoint; if that fails, emit a notice and continue."""
        n = self.progress.step
        if not self.keeper.due(n):
            return
        self.where = "save"
        with self.clock.paused():
            saved = self.keeper.save(self._undone() if failed else self.loop_state(), metrics)
        if saved:
            yield from self.show(Saved(*self.header(), tag, self.keeper.path))
        else:
            yield from self.notice(f"no checkpoint of step {n}: {self.keeper.error}")

    def loop_state(self) -> LoopState:
        """Return the state to save; it does not depend on when in a step's work it is requested."""
        self.ledger.read(self.progress)
        todo = tuple(each for each in self.todo if isinstance(each, (Evaluate, Save)))
        progress, epoch, over = self.progress, self.ledger.epoch, self.over
        if over and not todo:  # as at the start of the next epoch
            progress, epoch, over = progress._replace(batch=0), Running(), False
        return LoopState(
            train=self.state,
            progress=progress,
            cursor=self.cursor,
            window=self.ledger.window,
            epoch=epoch,
            history=tuple(self.history),
            callbacks=self.observers.states,
            callback_options=self.observers.options,
            accumulate=self.accumulate,
            micro_batches=self.micro_batches,
            nonfinite=self.ledger.nonfinite,
            stop=None if self.stop is None or self.stop.resumable else self.stop,
            over=over,
            todo=todo,
        )

    def _undone(self) -> LoopState:
        """Return the state to save on failure; a resumed run repeats the step's unfinished work."""
        if self.settled == self.progress.step:
            return self.loop_state()
        was = self._before or self._as_before()
        self.ledger.read(self.progress)
        return LoopState(
            train=next((a.state for a in reversed(was.todo) if isinstance(a, Replace)), was.state),
            progress=self.progress,
            cursor=self.cursor,
            window=was.window,
            epoch=was.epoch,
            history=tuple(self.history[: was.results]),
            callbacks=was.callbacks,
            callback_options=self.observers.options,
            accumulate=was.accumulate,
            micro_batches=self.micro_batches,
            nonfinite=self.ledger.nonfinite,
            stop=None if was.stop is None or was.stop.resumable else was.stop,
            over=self.over,
            todo=tuple(filter(None, map(_kept, was.todo))),
            due=True,
        )

    def _as_before(self) -> _Before:
        return _Before(
            self.state,
            self.ledger.window,
            self.ledger.epoch,
            len(self.history),
            dict(self.observers.states),
            self.accumulate,
            self.stop,
            tuple(self.todo),
        )


class _Before(NamedTuple):
    """Immutable snapshot of a run after a step, before the step's scheduled work."""

    state: Any
    window: Running
    epoch: Running
    results: int
    callbacks: dict[str, Any]
    accumulate: int
    stop: Stop | None
    todo: tuple[Action, ...]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return values to log as floats; expand a value per ensemble member as for a step's metrics."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.ndim == 1 and len(value) > 1:
            of_members = value.tolist()
            found |= statistics(name, of_members) | expanded({name: of_members})
            continue
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError):
            shaped = isinstance(value, torch.Tensor)
            got = f"a tensor of shape {tuple(value.shape)}" if shaped else repr(value)
            raise TypeError(
                f"the value {name!r} of a row of the log: expected a number or a 0-d tensor, got {got}. "
                "Reduce it first: value.mean()."
            ) from None
    return found


def _kept(action: Action) -> Action | None:
    """Return a pending action that JSON can represent; `None` if it cannot."""
    if isinstance(action, Replace) or (isinstance(action, Evaluate) and action.state is not None):
        return None
    if isinstance(action, Log):
        try:
            values = _numbers(action.values)
        except (TypeError, ValueError):  # such an error may be the reason for the failure
            return None
        return dataclasses.replace(action, values=values)
    return action


def _checked(action: Action, event: Event) -> Action:
    if type(action) not in _ORDER:
        known = ", ".join(kind.__name__ for kind in _ORDER)
        raise TypeError(f"a callback asked for {action!r}; there are {known}")
    if isinstance(action, Accumulate) and action.k < 1:
        raise ValueError(f"Accumulate takes a number of batches from 1 up, found {action.k!r}")
    if isinstance(action, Log) and action.split is None:
        return dataclasses.replace(action, split=_ROW.get(type(event), "train"))
    return action
