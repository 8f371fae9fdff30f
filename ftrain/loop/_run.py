"""One run, as a generator of events: the loop itself.

A step is taken, the callbacks are shown it, and at a boundary (the end of a log window or of an epoch,
an evaluation, a checkpoint, a signal) what was asked for is done. Between boundaries no tensor is read.

Read next: `_ledger.py` (metrics), `_observers.py` (callbacks), `_memory.py` and `_nonfinite.py` (what
can go wrong in a step).
"""

from __future__ import annotations

import dataclasses
import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import torch

from ftrain.checkpoint import Store
from ftrain.core import tree
from ftrain.core.errors import DonatedStateError, NonFiniteError, RecompileWarning
from ftrain.loop import _memory
from ftrain.loop._clock import Clock
from ftrain.loop._data import Batches, joined, length
from ftrain.loop._evaluate import evaluate
from ftrain.loop._garbage import Garbage
from ftrain.loop._keeper import Keeper
from ftrain.loop._ledger import Ledger
from ftrain.loop._nonfinite import first_nonfinite
from ftrain.loop._observers import Observers
from ftrain.loop._signals import Signals
from ftrain.loop.callback import Accumulate, Action, Evaluate, Log, Replace, Save, Stop
from ftrain.loop.events import (
    BackwardEnd,
    BatchBegin,
    BatchEnd,
    EpochBegin,
    EpochEnd,
    EvaluateBegin,
    EvaluateEnd,
    Event,
    Failure,
    Logged,
    LoopWarning,
    Notice,
    Plan,
    Progress,
    Saved,
    TrainBegin,
    TrainEnd,
    WindowEnd,
)
from ftrain.loop.result import EpochResult, FitResult, Status
from ftrain.loop.state import LoopState

__all__ = ["Parts", "Run"]

_ORDER: tuple[type[Action], ...] = (Replace, Accumulate, Evaluate, Stop, Log, Save)
_ROW: dict[type[Event], str] = {EvaluateEnd: "eval", EpochEnd: "epoch"}
_NORM = "grad_norm/"
_MOST_ROUNDS = 100

Events = Generator[Event, Iterable[Action] | None, None]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        step: `(state, batch) -> (state, metrics)`, compiled or not.
        plain_step: the same, not compiled.
        eval_step: `(state, batch) -> metrics`.
        train_data: batches with cursors.
        eval_data: the same; `None`: nothing is evaluated.
        plan: where the run ends.
        save_every: steps between checkpoints; `None`: at the end of each epoch.
        store: where they go.
        owns_store: whether it was made for this run, and is closed with it.
        max_skipped: steps skipped in a row that end the run.
        count: `batch -> (samples, tokens)`.
    """

    step: Callable[[Any, Any], tuple[Any, Any]]
    plain_step: Callable[[Any, Any], tuple[Any, Any]]
    eval_step: Callable[[Any, Any], Any] | None
    train_data: Batches
    eval_data: Batches | None
    plan: Plan
    save_every: int | None
    store: Store | None
    owns_store: bool
    max_skipped: int | None
    count: Callable[[Any], tuple[int, int]]


class Run:
    """A run between its first event and its last."""

    def __init__(self, parts: Parts, loop: LoopState, observers: Observers, resumed: bool) -> None:
        self.parts, self.observers, self.resumed = parts, observers, resumed
        self.clock = Clock()
        self.ledger = Ledger(loop, self.clock)
        self.keeper = Keeper(parts.store, loop, resumed)
        self.signals, self.garbage = Signals(), Garbage()
        self.state: Any = loop.train
        self.progress = loop.progress
        self.cursor = loop.cursor or parts.train_data.start()
        self.history = list(loop.history)
        self.accumulate, self.micro_batches = loop.accumulate, loop.micro_batches
        self.stop, self.over = loop.stop, loop.over
        self.todo = list(loop.todo)
        self.evaluated: set[str] = set()  # at this step
        self.where = "data"  # what would have to be blamed

    def events(self, wanted: Callable[[type[Event]], bool]) -> Events:
        """All events; those that are neither wanted nor heard by a callback are not made."""
        self.wanted = wanted
        with self.signals, self.garbage:
            try:
                yield from self._train()
                yield from self._finish()
            except Exception as error:
                yield from self._fail(error)
                raise
            finally:
                if self.parts.store is not None and self.parts.owns_store:
                    self.parts.store.close()

    def _train(self) -> Events:
        plan = self.parts.plan
        yield from self._show(TrainBegin(*self._now(), plan, self.resumed))
        yield from self._settle()
        if self._status() is not None:
            return
        left = None if plan.epochs is None else plan.epochs - self.cursor.epoch
        pairs = iter(self.parts.train_data.batches(self.cursor, left))
        try:
            yield from self._batches(joined(pairs, lambda: self.accumulate))
        finally:
            close = getattr(pairs, "close", None)
            if close is not None:
                close()  # ends the loader's workers

    def _batches(self, pairs: Iterator[tuple[Any, Any]]) -> Events:
        step, count = self.parts.step, self.parts.count
        pending, signals = self.ledger.pending, self.signals
        begins, begins_wanted = self._heard(BatchBegin), self.wanted(BatchBegin)
        ends, ends_wanted = self._heard(BatchEnd), self.wanted(BatchEnd)
        norms, clock = self._heard(BackwardEnd), self.clock
        boundary = self._next_boundary()
        self.where = "data"
        for batch, cursor in pairs:
            if not self.progress.batch:
                yield from self._show(EpochBegin(*self._now()))
            if begins:
                begin = BatchBegin(self.progress, clock.total(), self.state, batch)
                self._tell(begin)
                if begins_wanted:
                    self._ask((yield begin) or (), begin)
            if self.todo:
                yield from self._settle()
            self.where = "step"
            parts = batch if self.micro_batches == 1 else _memory.cut(batch, self.micro_batches)
            failure = None
            try:
                self.state, metrics = step(self.state, parts)
            except Exception as error:
                failure = error
            if failure is not None:
                metrics = yield from self._recover(failure, batch)
                failure = None  # it would keep memory
            pending.append(metrics)
            samples, tokens = count(batch)
            epoch, n, in_epoch, all_samples, all_tokens = self.progress
            n += 1
            self.progress = Progress(
                epoch, n, in_epoch + 1, all_samples + samples, all_tokens + tokens
            )
            self.cursor = cursor
            self.over = not cursor.position
            if norms:
                yield from self._show_norms(metrics)
            if ends:
                end = BatchEnd(self.progress, clock.total(), self.state, batch, metrics)
                self._tell(end)
                if ends_wanted:
                    self._ask((yield end) or (), end)
            if n == boundary or self.over or self.todo or signals.received is not None:
                yield from self._boundary(batch)
                if self._status() is not None:
                    return
                boundary = self._next_boundary()
            self.where = "data"
        raise ValueError(
            f"the training data gave no batch in epoch {self.progress.epoch}; each must have one"
        )

    def _boundary(self, batch: Any) -> Events:
        """What falls due after a step, and what was asked for."""
        parts, n = self.parts, self.progress.step
        plan, hopeless = parts.plan, None
        self.evaluated = set()
        if n % plan.log_every == 0:
            hopeless = yield from self._end_window(batch)
        if self.over:
            result = self.ledger.epoch_result(self.progress)
            self.history.append(result)
            self.todo.append(Log(result.values(), "epoch"))
            yield from self._show(EpochEnd(*self._now(), result))
        if parts.eval_data is not None and (
            self.over if plan.eval_every is None else n % plan.eval_every == 0
        ):
            self.todo.append(Evaluate())
        if self.over if parts.save_every is None else n % parts.save_every == 0:
            self.todo.append(Save("epoch" if parts.save_every is None else "step"))
        yield from self._settle()
        self.garbage.collect()
        if hopeless is not None:
            self.where = "step"
            raise NonFiniteError(hopeless)

    def _settle(self) -> Events:
        """Do what was asked for; then, where an epoch is over, go to the next."""
        yield from self._do()
        if self.over and not self.todo:
            self.over = False
            self.progress = self.progress._replace(epoch=self.progress.epoch + 1, batch=0)
            self.ledger.begin_epoch(self.progress)

    def _status(self) -> Status | None:
        """Whether the run has ended, and how."""
        plan = self.parts.plan
        if self.todo:  # an evaluation was cut short
            return "interrupted"
        if plan.epochs is not None and self.progress.epoch >= plan.epochs:
            return "completed"
        if plan.max_steps is not None and self.progress.step >= plan.max_steps:
            return "completed"
        if self.stop is not None:
            return "stopped"
        return "interrupted" if self.signals.received is not None else None

    def _finish(self) -> Events:
        """The last evaluation, the last checkpoint, the last row of the log."""
        status, n = self._status(), self.progress.step
        evaluated = any(each.split == "eval" and each.step == n for each in self.history)
        if status == "completed" and self.parts.eval_data is not None and n and not evaluated:
            self.todo.append(Evaluate())
            yield from self._settle()
            status = self._status()
        assert status is not None
        yield from self._save("interrupted" if status == "interrupted" else "last", {})
        self.where = "save"
        self.keeper.finish()
        result = self.result(status)
        if status != "interrupted" and self.ledger.window.steps:
            # A row for the steps that fill no window; a run that goes on from here counts them again.
            yield from self._end_window(None)
            yield from self._log()
        yield from self._show(TrainEnd(*self._now(), result))

    def _fail(self, error: Exception) -> Events:
        """Save what can be saved, and say what happened; the caller raises."""
        where = self.where
        if not is_intact(self.state):
            self.state = None
        yield from self._show(Failure(*self._now(), error, where), strict=False)
        if self.state is not None and where != "save":
            try:
                yield from self._save("failed", {})
                self.keeper.finish()
            except Exception as another:
                error.add_note(f"Nor could a checkpoint be written: {another}")
        result = self.result("failed", error)
        _attach(error, result, where)
        yield from self._show(TrainEnd(*self._now(), result), strict=False)

    def _recover(self, error: Exception, batch: Any) -> Generator[Any, Any, Any]:
        """The same step, same key, with at least twice the micro-batches; its metrics.

        Raises what cannot be recovered from, with what is known about it.
        """
        while True:
            if not is_intact(self.state):
                raise error
            if isinstance(error, NonFiniteError):
                error.add_note(self._position(batch))
            if not _memory.is_out_of_memory(error):
                raise error
            least = max(self.micro_batches, getattr(self.parts.plain_step, "accumulate", 1))
            k = _memory.next_cut(batch, least)
            if k is None:
                said = _memory.advice(self.state, batch, self.micro_batches, error)
                raise torch.OutOfMemoryError(said) from error
            _memory.release(error)
            self.micro_batches = k
            yield from self._notice(
                f"out of memory at step {self.progress.step + 1}: the step is taken again with {k} "
                f"micro-batches, and so are those to come; accumulate={k} does so from the start"
            )
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RecompileWarning)  # the notice has said why
                    self.state, metrics = self.parts.step(self.state, _memory.cut(batch, k))
            except Exception as again:
                error = again
            else:
                return metrics

    def _show_norms(self, metrics: Any) -> Events:
        norms = {
            name.removeprefix(_NORM): getattr(value, "value", value)
            for name, value in getattr(metrics, "entries", metrics).items()
            if name.startswith(_NORM)
        }
        if norms:
            yield from self._show(BackwardEnd(*self._now(), norms))

    def _end_window(self, batch: Any) -> Generator[Any, Any, str | None]:
        """A row for the log; why the run must end, where too many steps were skipped."""
        ledger, (epoch, n, *_) = self.ledger, self.progress
        ledger.read(self.progress)
        skipped = ledger.skipped
        window, duration = ledger.end_window(self.progress)
        if skipped:
            yield from self._notice(_skips(skipped, window.steps))
        samples, tokens = window.samples, window.tokens
        row = EpochResult("train", epoch, n, window.values(), samples, tokens).values()
        self.todo.append(Log(row, "train"))
        yield from self._show(WindowEnd(*self._now(), row, window.steps, samples, tokens, duration))
        most = self.parts.max_skipped
        if most is None or ledger.nonfinite < most:
            return None
        return (
            f"{ledger.nonfinite} steps in a row were skipped for a non-finite gradient. "
            f"{self._position(batch)} Lower the learning rate, clip, or look at these batches; "
            "max_skipped=None goes on all the same"
        )

    def _position(self, batch: Any) -> str:
        epoch, n, in_epoch, *_ = self.progress
        found = first_nonfinite(self.parts.plain_step, self.state, batch)
        return f"Last: step {n}, batch {max(in_epoch - 1, 0)} of epoch {epoch}: {found}."

    def _do(self) -> Events:
        """All that was asked for, in order; an evaluation that a signal cuts short stays to be done."""
        for _ in range(_MOST_ROUNDS):
            if not self.todo:
                return
            self.todo.sort(key=lambda action: _ORDER.index(type(action)))
            action = self.todo[0]
            if isinstance(action, Evaluate):
                if not (yield from self._evaluate(action)):
                    yield from self._log()
                    return
            elif isinstance(action, Log):
                yield from self._log()
            elif isinstance(action, Save):
                saves, self.todo = [each for each in self.todo if isinstance(each, Save)], []
                metrics = {name: x for save in saves for name, x in save.metrics.items()}
                yield from self._save(saves[-1].tag, metrics)
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
        """Whether it was done; not where a signal cut it short."""
        name, parts = action.name, self.parts
        if name in self.evaluated:
            self.todo.pop(0)
            return True
        if parts.eval_data is None or parts.eval_step is None:
            missing = "eval_data" if parts.eval_data is None else "an eval_step"
            raise ValueError(f"a callback asked for an evaluation, but the run has no {missing}")
        self.where = "evaluate"
        before = dict(self.observers.states)
        yield from self._show(EvaluateBegin(*self._now(), name, length(parts.eval_data)))
        with self.clock.paused() as pause:
            found = evaluate(
                parts.eval_step,
                self.state if action.state is None else action.state,
                parts.eval_data,
                parts.count,
                # A state of its own cannot be kept for later.
                lambda: action.state is None and self.signals.received is not None,
            )
        if found is None:
            self.observers.states = before  # it will begin again
            return False
        self.todo.pop(0)
        self.evaluated.add(name)
        split = f"eval/{name}" if name else "eval"
        epoch, n, *_ = self.progress
        seen = (found.samples, found.tokens, pause.seconds)
        result = EpochResult(split, epoch, n, found.values(), *seen)
        self.history.append(result)
        prefix = f"{name}/" if name else ""
        row = {f"{prefix}{key}": value for key, value in result.values().items()}
        self.todo.append(Log(row, "eval"))
        yield from self._show(EvaluateEnd(*self._now(), result, name))
        return True

    def _log(self) -> Events:
        rows: dict[str, dict[str, float]] = {}
        for action in self.todo:
            if isinstance(action, Log):
                values = {name: float(value) for name, value in action.values.items()}
                rows.setdefault(action.split or "train", {}).update(values)
        self.todo = [action for action in self.todo if not isinstance(action, Log)]
        for split, row in rows.items():
            yield from self._show(Logged(*self._now(), split, row))

    def _save(self, tag: str, metrics: Any) -> Events:
        """A checkpoint; where it cannot be written, the run goes on without."""
        n = self.progress.step
        if not self.keeper.due(n):
            return
        self.where = "save"
        with self.clock.paused():
            saved = self.keeper.save(self.loop_state(), metrics)
        if saved:
            yield from self._show(Saved(*self._now(), tag, self.keeper.path))
        else:
            yield from self._notice(f"no checkpoint of step {n}: {self.keeper.error}")

    def loop_state(self) -> LoopState:
        """All that must survive."""
        self.ledger.read(self.progress)
        return LoopState(
            train=self.state,
            progress=self.progress,
            cursor=self.cursor,
            window=self.ledger.window,
            epoch=self.ledger.epoch,
            history=tuple(self.history),
            callbacks=self.observers.states,
            accumulate=self.accumulate,
            micro_batches=self.micro_batches,
            nonfinite=self.ledger.nonfinite,
            stop=None if self.stop is None or self.stop.resumable else self.stop,
            over=self.over,
            todo=tuple(each for each in self.todo if isinstance(each, (Evaluate, Save))),
        )

    def result(self, status: Status, error: Exception | None = None) -> FitResult:
        """What has come of it."""
        (epoch, n, in_epoch, *_), plan = self.progress, self.parts.plan
        history = list(self.history)
        if in_epoch and not self.over and error is None:
            history.append(self.ledger.epoch_result(self.progress))  # of the epoch so far
        number = self.signals.received if status == "interrupted" else None
        by_epochs = plan.epochs is not None and epoch >= plan.epochs
        reasons: dict[Status, str] = {
            "completed": f"{plan.epochs} epochs" if by_epochs else f"{plan.max_steps} steps",
            "stopped": "" if self.stop is None else self.stop.reason,
            "interrupted": "" if number is None else signal.Signals(number).name,
            "failed": f"{type(error).__name__}: {error}",
        }
        return FitResult(
            state=self.state,
            history=tuple(history),
            status=status,
            reason=reasons[status],
            step=n,
            epoch=epoch,
            checkpoint=self.keeper.path,
            signal=number,
            error=error,
        )

    def _now(self) -> tuple[Progress, float, Any]:
        return self.progress, self.clock.total(), self.state

    def _heard(self, kind: type[Event]) -> bool:
        return bool(self.observers.hearing(kind)) or self.wanted(kind)

    def _show(self, event: Event, strict: bool = True) -> Events:
        self._tell(event, strict)
        if self.wanted(type(event)):
            self._ask((yield event) or (), event)

    def _tell(self, event: Event, strict: bool = True) -> None:
        """Show an event to the callbacks."""
        observers = self.observers
        asked = observers.show(event)
        if asked:
            self._ask(asked, event)
        if observers.failed is not None:
            (name, error), observers.failed = observers.failed, None
            if strict:
                self.where = f"callback {name}"
                raise error

    def _ask(self, actions: Iterable[Action], event: Event) -> None:
        self.todo += [_checked(action, event) for action in actions]

    def _notice(self, message: str) -> Events:
        if not self._heard(Notice):
            warnings.warn(message, LoopWarning, stacklevel=2)
        yield from self._show(Notice(*self._now(), message))

    def _next_boundary(self) -> int:
        plan, n = self.parts.plan, self.progress.step
        every = (plan.log_every, plan.eval_every, self.parts.save_every)
        ends = [(n // k + 1) * k for k in every if k is not None]
        return min(ends if plan.max_steps is None else [*ends, plan.max_steps])


def is_intact(state: Any) -> bool:
    """Whether a state was not given away to a step that then failed."""
    try:
        tree.leaves(state)
    except DonatedStateError:
        return False
    return True


def _checked(action: Action, event: Event) -> Action:
    if type(action) not in _ORDER:
        known = ", ".join(kind.__name__ for kind in _ORDER)
        raise TypeError(f"a callback asked for {action!r}; there are {known}")
    if isinstance(action, Accumulate) and action.k < 1:
        raise ValueError(f"Accumulate takes a number of batches from 1 up, found {action.k!r}")
    if isinstance(action, Log) and action.split is None:
        return dataclasses.replace(action, split=_ROW.get(type(event), "train"))
    return action


def _skips(skipped: list[tuple[int, int, int]], steps: int) -> str:
    listed = "; ".join(f"step {n} (epoch {e}, batch {b})" for n, e, b in skipped[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    n = len(skipped)
    return f"{n} of the last {steps} steps were skipped for a non-finite gradient: {listed}{more}"


def _attach(error: Exception, result: FitResult, where: str) -> None:
    """Hand the state to whoever catches the exception."""
    error.fit_result = result  # type: ignore[attr-defined]
    said = f"Training failed ({where}) after step {result.step}, epoch {result.epoch}. "
    if result.checkpoint is not None:
        said += f"The last checkpoint is {result.checkpoint}. "
    if result.state is not None:
        said += "The state after that step: `except Exception as error: error.fit_result.state`."
    elif result.checkpoint is None:
        said += "The state is lost: the step failed while it wrote to it, and no checkpoint was written."
    error.add_note(said)
