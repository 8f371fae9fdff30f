"""Training loop of one run, as a generator of events.

The loop takes a step, dispatches its events to the callbacks, and at a boundary (the end of a log window
or an epoch, an evaluation, a checkpoint, a signal) runs the pending actions. Between boundaries it reads
no tensor.

Read next: `_present.py` (pending actions), `_ledger.py` (metrics), `_memory.py` and `_nonfinite.py`
(out of memory and non-finite values in a step).
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.errors import DonatedStateError, NonFiniteError, RecompileWarning
from ftrain.loop import _memory, _skips
from ftrain.loop._columns import check_names, without_examples
from ftrain.loop._compiling import Compiling, check_compiler
from ftrain.loop._data import joined
from ftrain.loop._garbage import Garbage
from ftrain.loop._members import members_of
from ftrain.loop._names import eval_metrics
from ftrain.loop._nonfinite import first_nonfinite
from ftrain.loop._observers import Observers
from ftrain.loop._parts import Parts
from ftrain.loop._present import Present
from ftrain.loop.callback import Evaluate, Events, Log, Save
from ftrain.loop.events import (
    BackwardEnd,
    BatchBegin,
    BatchEnd,
    EpochBegin,
    EpochEnd,
    Event,
    Failure,
    Progress,
    TrainBegin,
    TrainEnd,
    WindowEnd,
)
from ftrain.loop.result import FitResult, Status
from ftrain.loop.state import LoopState

__all__ = ["Run"]

_NORM = "grad_norm/"


class Run:
    """Loop of one run, from its first event to its last."""

    def __init__(self, parts: Parts, loop: LoopState, observers: Observers, resumed: bool) -> None:
        self.parts, self.resumed = parts, resumed
        self.now = Present(parts, loop, observers, resumed)
        self.garbage = Garbage()

    def check_compiler(self) -> None:
        """Raise before the first step if a step is to be compiled and the compiler is missing."""
        if self._status() is None:
            evaluation = None if self.parts.eval_data is None else self.parts.eval_step
            check_compiler((self.parts.step, evaluation), self.now.state)

    def events(self, wanted: Callable[[type[Event]], bool]) -> Events:
        """Yield the wanted events. Per-step events without a listener are not constructed."""
        now = self.now
        now.wanted = wanted
        with now.signals, self.garbage:
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
        now = self.now
        plan = self.parts.plan
        names = None
        if now.observers.monitor_evaluations():
            names = eval_metrics(self.parts.eval_step, now.state, self.parts.eval_data)
        yield from now.show(TrainBegin(*now.header(), plan, self.resumed, names))
        if now.settled == now.progress.step:
            yield from self._settle()
        else:
            yield from self._boundary(None)
        if self._status() is not None:
            return
        left = None if plan.epochs is None else plan.epochs - now.cursor.epoch
        pairs = iter(self.parts.train_data.batches(now.cursor, left))
        try:
            yield from self._batches(joined(pairs, lambda: now.accumulate))
        finally:
            close = getattr(pairs, "close", None)
            if close is not None:
                close()  # ends the loader's workers

    def _batches(self, pairs: Iterator[tuple[Any, Any]]) -> Events:
        now = self.now
        step, count = self.parts.step, self.parts.count
        pending, rows, signals = now.ledger.pending, now.ledger.rows, now.signals
        begins, compiling = now.heard(BatchBegin), Compiling(now, "training step", step)
        ends, ends_wanted = now.heard(BatchEnd), now.wanted(BatchEnd)
        norms, clock = now.heard(BackwardEnd), now.clock
        boundary, unchecked = self._next_boundary(), True
        now.where = "data"
        for batch, cursor in pairs:
            if begins or compiling.is_due or not now.progress.batch:
                yield from self._before(batch, compiling)
            now.where = "step"
            parts = batch if now.micro_batches == 1 else _memory.cut(batch, now.micro_batches)
            failure = None
            try:
                now.state, metrics = step(now.state, parts)
            except Exception as error:
                failure = error
            if failure is not None:
                metrics = yield from self._recover(failure, batch)
                failure = None  # its traceback would keep tensors alive
            if compiling.is_due:
                compiling.done()
                yield from compiling.end()
            pending.append(without_examples(metrics))
            if unchecked:
                unchecked = check_names(metrics, members_of(now.state))
            samples, tokens = count(batch)
            rows.append(samples)
            epoch, n, in_epoch, all_samples, all_tokens = now.progress
            n += 1
            now.progress = Progress(
                epoch, n, in_epoch + 1, all_samples + samples, all_tokens + tokens
            )
            now.cursor = cursor
            now.over = not cursor.position
            if norms:
                yield from self._show_norms(metrics)
            if ends:
                end = BatchEnd(now.progress, clock.total(), now.state, batch, metrics)
                now.tell(end)
                if ends_wanted:
                    now.ask((yield end) or (), end)
            if n == boundary or now.over or now.todo or signals.received is not None:
                yield from self._boundary(batch)
                if self._status() is not None:
                    return
                boundary = self._next_boundary()
            now.where = "data"
        raise ValueError(
            f"the training data gave no batch in epoch {now.cursor.epoch + 1}; each must have one"
        )

    def _before(self, batch: Any, compiling: Compiling) -> Events:
        """Emit the events before a step, then run the requested actions."""
        now = self.now
        if not now.progress.batch:
            # From the cursor, which a failed step does not advance: no epoch begins twice.
            now.progress = now.progress._replace(epoch=now.cursor.epoch + 1)
            yield from now.show(EpochBegin(*now.header()))
        if now.heard(BatchBegin):
            yield from now.show(BatchBegin(*now.header(), batch))
        if now.todo:
            yield from self._settle()
        if compiling.is_due:
            yield from compiling.begin()

    def _boundary(self, batch: Any) -> Events:
        """Run scheduled work, then requested actions."""
        now = self.now
        parts, n = self.parts, now.progress.step
        plan, hopeless = parts.plan, None
        now.begin_boundary()
        if n % plan.log_every == 0:
            hopeless = yield from self._end_window(batch)
        if now.over:
            result = now.ledger.epoch_result(now.progress)
            now.history.append(result)
            now.todo.append(Log(result.values(), "train_epoch"))
            yield from now.show(EpochEnd(*now.header(), result))
        due = now.over if plan.eval_every is None else n % plan.eval_every == 0
        # The last evaluation, too, must precede every checkpoint requested at this step.
        if parts.eval_data is not None and (due or self._is_last()):
            now.todo.append(Evaluate())
        if now.over if parts.save_every is None else n % parts.save_every == 0:
            now.todo.append(Save("epoch" if parts.save_every is None else "step"))
        yield from self._settle()
        now.end_boundary()
        self.garbage.collect()
        if hopeless is not None:
            now.where = "step"
            raise NonFiniteError(hopeless)

    def _settle(self) -> Events:
        """Run the pending actions; then, if the epoch is over, prepare the next one."""
        now = self.now
        yield from now.do()
        if now.over and not now.todo:
            now.over = False
            now.progress = now.progress._replace(batch=0)
            now.ledger.begin_epoch(now.progress)

    def _status(self) -> Status | None:
        """Return the status of a run that has ended; `None` while it continues."""
        now = self.now
        if now.todo:  # a signal interrupted an evaluation
            return "interrupted"
        if self._is_last():
            return "completed"
        if now.stop is not None:
            return "stopped"
        return "interrupted" if now.signals.received is not None else None

    def _is_last(self) -> bool:
        """Return True if all epochs or all steps are done."""
        plan, now = self.parts.plan, self.now
        return (plan.epochs is not None and now.cursor.epoch >= plan.epochs) or (
            plan.max_steps is not None and now.progress.step >= plan.max_steps
        )

    def _finish(self) -> Events:
        """Write the last checkpoint and row; evaluate a completed run that lacks a last evaluation."""
        now = self.now
        status, n = self._status(), now.progress.step
        evaluated = any(each.split == "eval" and each.step == n for each in now.history)
        if status == "completed" and self.parts.eval_data is not None and n and not evaluated:
            now.todo.append(Evaluate())
            yield from self._settle()
            status = self._status()
        assert status is not None
        yield from now.save("interrupted" if status == "interrupted" else "last", {})
        now.where = "save"
        now.keeper.finish()
        result = self.result(status)
        if status != "interrupted" and now.ledger.window.steps:
            # A row for the last, partial window; a resumed run includes its steps in a full one.
            yield from self._end_window(None)
            yield from now.log()
        yield from now.show(TrainEnd(*now.header(), result))

    def _fail(self, error: Exception) -> Events:
        """Write a checkpoint if the state is intact, and emit `Failure`; the caller raises."""
        now = self.now
        where = now.where
        if not is_intact(now.state):
            now.state = None
        yield from now.show(Failure(*now.header(), error, where), strict=False)
        if now.state is not None and where != "save":
            try:
                yield from now.save("failed", {}, failed=True)
                now.keeper.finish()
            except Exception as another:
                error.add_note(f"Nor could a checkpoint be written: {another}")
        result = self.result("failed", error)
        _attach(error, result, where)
        yield from now.show(TrainEnd(*now.header(), result), strict=False)

    def _recover(self, error: Exception, batch: Any) -> Generator[Any, Any, Any]:
        """Repeat the step, with the same key, in at least twice the micro-batches; return its metrics.

        Raise other errors; a `NonFiniteError` gets a note on the source of the non-finite values.
        """
        now = self.now
        while True:
            if not is_intact(now.state):
                raise error
            if isinstance(error, NonFiniteError):
                _, n, position, *_ = now.progress
                error.add_note(self._blame(batch, n + 1, position + 1))
            if not _memory.is_out_of_memory(error):
                raise error
            own = getattr(self.parts.plain_step, "accumulate", 1)
            k = _memory.next_cut(batch, max(now.micro_batches, own), own)
            if k is None:
                said = _memory.advice(now.state, batch, now.micro_batches, error)
                raise torch.OutOfMemoryError(said) from error
            _memory.release(error)
            now.micro_batches = k
            yield from now.notice(
                f"out of memory at step {now.progress.step + 1}: the step is taken again with {k} "
                f"micro-batches, and so are those to come; accumulate={k} does so from the start"
            )
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RecompileWarning)  # the notice gives the reason
                    now.state, metrics = self.parts.step(now.state, _memory.cut(batch, k))
            except Exception as again:
                error = again
            else:
                return metrics

    def _show_norms(self, metrics: Any) -> Events:
        now = self.now
        norms = {
            name.removeprefix(_NORM): getattr(value, "value", value)
            for name, value in getattr(metrics, "entries", metrics).items()
            if name.startswith(_NORM)
        }
        if norms:
            yield from now.show(BackwardEnd(*now.header(), norms))

    def _end_window(self, batch: Any) -> Generator[Any, Any, str | None]:
        """Add a row to the log; return a message if the run must end because of skipped steps."""
        now = self.now
        ledger, (epoch, n, position, *_) = now.ledger, now.progress
        ledger.read(now.progress)
        skipped = ledger.skipped
        window, duration = ledger.end_window(now.progress)
        most = self.parts.max_skipped
        if skipped:
            yield from now.notice(_skips.said(skipped, window.steps))
        lost = None if most is None else _skips.said_of_lost(ledger.nonfinite, most, window.steps)
        if lost is not None:
            yield from now.notice(lost)
        result = window.result("train", epoch, n)
        row, seen = result.values(), (window.steps, window.samples, window.tokens)
        now.todo.append(Log(row, "train"))
        yield from now.show(WindowEnd(*now.header(), row, *seen, duration, result.members))
        hopeless = _skips.in_a_row(ledger.nonfinite)
        if batch is None or most is None or hopeless < most:
            return None
        whose = " by every member" if isinstance(ledger.nonfinite, tuple) else ""
        return (
            f"{hopeless} steps in a row were skipped{whose} for a non-finite gradient. "
            f"{self._blame(batch, n, position)} Lower the learning rate, clip, or look at these "
            "batches; max_skipped=None goes on all the same"
        )

    def _blame(self, batch: Any, step: int, position: int) -> str:
        found = first_nonfinite(self.parts.plain_step, self.now.state, batch)
        return f"At step {step}, batch {position} of epoch {self.now.progress.epoch}: {found}."

    def result(self, status: Status, error: Exception | None = None) -> FitResult:
        """Return the result of the run."""
        now = self.now
        (epoch, n, in_epoch, *_), plan = now.progress, self.parts.plan
        history = list(now.history)
        if in_epoch and not now.over and error is None:
            history.append(now.ledger.epoch_result(now.progress, whole=False))
        number = now.signals.received if status == "interrupted" else None
        by_epochs = plan.epochs is not None and now.cursor.epoch >= plan.epochs
        reasons: dict[Status, str] = {
            "completed": _n(plan.epochs, "epoch") if by_epochs else _n(plan.max_steps, "step"),
            "stopped": "" if now.stop is None else now.stop.reason,
            "interrupted": "" if number is None else signal.Signals(number).name,
            "failed": f"{type(error).__name__}: {error}",
        }
        return FitResult(
            state=now.state,
            history=tuple(history),
            status=status,
            reason=reasons[status],
            step=n,
            epoch=epoch,
            checkpoint=now.keeper.path,
            signal=number,
            error=error,
        )

    def _next_boundary(self) -> int:
        plan, n = self.parts.plan, self.now.progress.step
        every = (plan.log_every, plan.eval_every, self.parts.save_every)
        ends = [(n // k + 1) * k for k in every if k is not None]
        return min(ends if plan.max_steps is None else [*ends, plan.max_steps])


def is_intact(state: Any) -> bool:
    """Return True unless the state was donated to a step that failed."""
    try:
        tree.leaves(state)
    except DonatedStateError:
        return False
    return True


def _n(n: int | None, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _attach(error: Exception, result: FitResult, where: str) -> None:
    """Attach the result to the exception, with a note on where the state is."""
    error.fit_result = result  # type: ignore[attr-defined]
    said = f"Training failed ({where}) after step {result.step}, epoch {result.epoch}. "
    if result.checkpoint is not None:
        said += f"The last checkpoint is {result.checkpoint}. "
    if result.state is not None:
        said += "The state after that step: `except Exception as error: error.fit_result.state`."
    elif result.checkpoint is None:
        said += "The state is lost: the step failed while it wrote to it, and no checkpoint was written."
    error.add_note(said)
