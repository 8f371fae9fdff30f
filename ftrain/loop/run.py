"""Training loop of one run, as a generator of events.

    next batch -> step -> events
    at a boundary: log -> evaluate -> act -> save

A boundary is the end of a log window or an epoch, a step after which an evaluation or a checkpoint is
due, a requested action, or a signal.

A run is one immutable value, `Run.state`, which changes only by `self.state = self.state.replace(...)`;
the runtime beside it holds nothing that a checkpoint needs. Between boundaries no tensor is read.

Read next: `_schedule.py` (what is due), `_actions.py` (requested actions), `_read_metrics.py`,
`_run_evaluation.py`, `_emitter.py`, and `_repeat_step.py` (a step that ran out of memory).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from ftrain.core.errors import NonFiniteError
from ftrain.loop import _actions
from ftrain.loop._batches import check_position, joined, no_batches, opened
from ftrain.loop._compiled_steps import check_compiler, is_compiled_next
from ftrain.loop._emitter import Emitter
from ftrain.loop._ensemble_members import members_of
from ftrain.loop._eval_columns import eval_columns
from ftrain.loop._first_nonfinite import nonfinite_source
from ftrain.loop._metric_columns import check_names
from ftrain.loop._metric_totals import MetricTotals
from ftrain.loop._nan_loss import nan_loss_message, nonfinite_batch
from ftrain.loop._out_of_memory import cut
from ftrain.loop._outcome import attach_result, epoch_result, fit_result, is_intact, status_of
from ftrain.loop._read_metrics import read_metrics
from ftrain.loop._repeat_step import repeat_step
from ftrain.loop._run_evaluation import run_evaluation
from ftrain.loop._runtime import Runtime
from ftrain.loop._schedule import due_after_step, next_boundary
from ftrain.loop._skipped_steps import all_skipped_message, skip_messages, skipped_by_all
from ftrain.loop._state_to_save import (
    note_unreadable_metrics,
    state_to_save,
    state_to_save_after_failure,
)
from ftrain.loop._unlogged_metrics import has_examples, without_examples
from ftrain.loop.callback import Evaluate, Events, Log, Notify, Save
from ftrain.loop.events import (
    BackwardEnd,
    BatchBegin,
    BatchEnd,
    CompileBegin,
    CompileEnd,
    EpochBegin,
    EpochEnd,
    Event,
    Failure,
    Logged,
    Saved,
    TrainBegin,
    TrainEnd,
    WindowEnd,
)
from ftrain.loop.result import Status
from ftrain.loop.state import LoopState

__all__ = ["Run"]


class Run(Emitter):
    """Training loop of one run, a generator of the run's events from `TrainBegin` to `TrainEnd`.

    Attributes:
        before_boundary: during a boundary, the state before it, saved if the boundary fails; or `None`.
        last_batch: the batch of the last step, once the steps have ended.
    """

    def __init__(self, state: LoopState, runtime: Runtime) -> None:
        super().__init__(state.replace(cursor=state.cursor or runtime.train_data.start()), runtime)
        self.before_boundary: LoopState | None = None
        self.last_batch: Any = None
        # The duration of a window or an epoch that a previous process began is unknown.
        if not state.window.steps:
            runtime.clock.restart("window")
        if not state.progress.batch:
            runtime.clock.restart("epoch")

    def check(self) -> None:
        """Raise if the run cannot begin: a compiler is missing, or the data are not the checkpoint's.

        An ensemble with several axes is refused too, and ranks whose states differ.
        """
        runtime = self.runtime
        members_of(self.state.train)
        runtime.ranks.check_start(runtime.plan, self.state)
        if self._status() is None:
            if runtime.resumed and self.state.cursor is not None:
                check_position(runtime.train_data, self.state.cursor)
            evaluation = None if runtime.eval_data is None else runtime.eval_step
            check_compiler((runtime.step, evaluation), self.state.train)

    def events(self, wanted: Callable[[type[Event]], bool]) -> Events:
        """Run the training loop; yield its events of the kinds for which `wanted(kind)` is True."""
        runtime = self.runtime
        runtime.wanted = wanted
        runtime.ranks.publish(lambda: runtime.phase)
        with runtime.signals, runtime.garbage, runtime.logs:
            try:
                yield from self._begin()
                if self._status() is None:
                    with opened(
                        runtime.train_data, self.state.cursor, runtime.plan.epochs
                    ) as batches:
                        accumulate, rows = lambda: self.state.accumulate, runtime.count_rows
                        yield from self._steps(joined(batches, accumulate, rows))
                yield from self._end()
            except Exception as error:
                ended, writes = runtime.ranks.failure(error, self.state.progress.step)
                runtime.checkpoints.after_failure(writes)
                yield from self._fail(ended)
                if ended is error:
                    raise
                raise ended from error
            finally:
                runtime.checkpoints.close()

    def _steps(self, batches: Iterator[tuple[Any, Any]]) -> Events:
        """Take training steps until the run ends; yield their events."""
        runtime, plan, clock = self.runtime, self.runtime.plan, self.runtime.clock
        step, count_samples = runtime.step, runtime.count_samples
        batch_begins, backward_ends = map(runtime.has_listener, (BatchBegin, BackwardEnd))
        all_wanted, idle_until = runtime.wanted(BatchEnd), runtime.callbacks.idle_until
        compiles, unchecked, drops, wake = is_compiled_next(step), True, True, 0.0
        boundary = next_boundary(plan, self.state.progress.step)
        runtime.signals.after_step(self.state.progress.step)
        runtime.phase = "data"
        for batch, cursor in batches:
            if unchecked:
                runtime.ranks.check_batch(batch)
            if batch_begins or backward_ends or compiles or not self.state.progress.batch:
                yield from self._begin_step(batch, compiles)
                wake = 0.0
            runtime.phase = "step"
            state, failure = self.state, None
            samples, tokens = count_samples(batch)
            began = time.perf_counter() if compiles else 0.0
            try:
                k = state.micro_batches
                train, metrics = step(state.train, batch if k == 1 else cut(batch, k))
            except Exception as error:
                failure = error
            if failure is not None:
                train, metrics = yield from repeat_step(self, failure, batch)
                state, failure = self.state, None  # its traceback would keep tensors alive
            progress = state.progress.after_step(samples, tokens)
            kept = without_examples(metrics) if drops else metrics
            self.state = state.replace(
                train=train,
                progress=progress,
                cursor=cursor,
                unread=(kept, samples, tokens, state.unread),
                epoch_ended=not cursor.position,
                boundary_unfinished=True,
            )
            if unchecked:
                unchecked, drops = check_names(metrics, members_of(train)), has_examples(metrics)
            del train, state  # so that `Replace` frees the old training state at a boundary

            if compiles:
                compiles, seconds = False, time.perf_counter() - began
                yield from self.emit(CompileEnd(*self.header(), "training step", seconds))
            if backward_ends:
                yield from self.emit_norms(metrics)
            now = clock.total()
            if all_wanted or (now >= wake and now >= (wake := idle_until(BatchEnd))):
                yield from self.emit(BatchEnd(*self.header(), batch, metrics))

            at_boundary = progress.step == boundary or self.state.epoch_ended or self.state.pending
            if at_boundary or runtime.signals.after_step(progress.step) is not None:
                yield from self._boundary(batch)
                if self._status() is not None:
                    self.last_batch = batch
                    return
                boundary, wake = next_boundary(plan, progress.step), 0.0
            runtime.phase = "data"
        raise no_batches(self.state.epochs_done + 1)

    def _boundary(self, batch: Any) -> Events:
        """Do the work due after a step (log, evaluate, save), and run the requested actions."""
        runtime, state = self.runtime, self.state
        self.before_boundary = state
        runtime.ranks.begin_boundary(state.progress.step, state.pending)
        due = due_after_step(self.runtime.plan, self.state)
        failure = None
        # A resumed run without another batch in its epoch may have ended this window before.
        if due.window and (state.unread or state.window.steps):
            failure = yield from self._end_window(batch)
        if due.epoch:
            yield from self._end_epoch()
        self.state = self.state.replace(pending=(*self.state.pending, *due.actions))
        yield from self._act()
        self.state = self.state.replace(boundary_unfinished=False)
        runtime.ranks.end_boundary((self._status(), self.state.accumulate, len(self.state.pending)))
        self.before_boundary = None
        self.runtime.garbage.collect()
        if failure is not None:
            self.runtime.phase = "step"
            raise NonFiniteError(failure)

    def _act(self) -> Events:
        """Run pending actions until none remains; if an epoch has ended, begin the next one.

        The events of an action may request more actions, which run too. An evaluation that a signal
        interrupts stays pending, as do the actions after it except `Log`.
        """
        for _ in range(_actions.MOST_ROUNDS):
            if not self.state.pending:
                break
            action, *others = _actions.in_order(self.state.pending)
            self.state = self.state.replace(pending=(action, *others))
            if isinstance(action, Evaluate):
                if not (yield from run_evaluation(self, action)):
                    yield from self._log()
                    return
            elif isinstance(action, Log):
                yield from self._log()
            elif isinstance(action, Save):  # last in the order, so only saves are pending
                saves = [each for each in self.state.pending if isinstance(each, Save)]
                self.state = self.state.replace(pending=())
                metrics = {name: x for save in saves for name, x in save.metrics.items()}
                yield from self._save(saves[-1].tag, metrics)
            else:
                self.state = self.state.replace(pending=tuple(others))
                if isinstance(action, Notify):
                    yield from self.notice(action.message)
                else:
                    self.state = _actions.applied(self.state, action)
        else:
            if self.state.pending:
                raise _actions.endless_requests(self.state)
        if self.state.epoch_ended:
            self.state = _actions.begin_epoch(self.state)
            self.runtime.clock.restart("epoch")

    def _begin(self) -> Events:
        """Emit `TrainBegin`; in a resumed run, finish the work due after its last step."""
        runtime, names = self.runtime, None
        if runtime.callbacks.monitors_evaluations():
            names = eval_columns(runtime.eval_step, self.state.train, runtime.eval_data)
        yield from self.emit(TrainBegin(*self.header(), runtime.plan, runtime.resumed, names))
        if self.state.boundary_unfinished:
            yield from self._boundary(None)
        else:
            yield from self._act()

    def _begin_step(self, batch: Any, compiles: bool) -> Events:
        """Emit the events before a step, and run the actions that they request."""
        if not self.state.progress.batch:
            # The epoch comes from the cursor, which a failed step does not advance: none begins twice.
            progress = self.state.progress._replace(epoch=self.state.epochs_done + 1)
            self.state = self.state.replace(progress=progress)
            yield from self.emit(EpochBegin(*self.header()))
        if self.runtime.has_listener(BatchBegin):
            yield from self.emit(BatchBegin(*self.header(), batch))
        if self.state.pending:
            yield from self._act()
        if compiles:
            yield from self.emit(CompileBegin(*self.header(), "training step"))

    def _end_window(self, batch: Any) -> Generator[Any, Any, str | None]:
        """Request a log row for the window; return a message if the run must end, else `None`."""
        runtime = self.runtime
        self.state = read_metrics(self.state)
        (epoch, step, position, *_), nonfinite = self.state.progress, self.state.nonfinite
        window, skipped, most = self.state.window, self.state.skipped, runtime.max_skipped
        self.state = self.state.replace(window=MetricTotals(), skipped=())
        duration = runtime.clock.restart("window")
        for message in skip_messages(skipped, nonfinite, most, window.steps):
            yield from self.notice(message)
        result = window.result("train", epoch, step)
        row, seen = result.values(), (window.steps, window.samples, window.tokens)
        yield from self.notice_once(None if skipped else nan_loss_message(row, batch))
        self.state = self.state.replace(pending=(*self.state.pending, Log(row, "train")))
        yield from self.emit(WindowEnd(*self.header(), row, *seen, duration, result.members))
        if batch is None or most is None or skipped_by_all(nonfinite) < most:
            return None
        return all_skipped_message(nonfinite, nonfinite_source(self, batch, step, position))

    def _end_epoch(self) -> Events:
        """Add the result of the epoch to the history, and request its row of the log."""
        self.state = read_metrics(self.state)
        result = epoch_result(self.state, self.runtime.clock, whole=True)
        self.state = self.state.replace(
            history=(*self.state.history, result),
            pending=(*self.state.pending, Log(result.values(), "train_epoch")),
        )
        yield from self.emit(EpochEnd(*self.header(), result))

    def _log(self) -> Events:
        """Emit the rows of the pending `Log` actions."""
        rows, conflicts = _actions.rows_to_log(self.state.pending)
        others = tuple(each for each in self.state.pending if not isinstance(each, Log))
        self.state = self.state.replace(pending=others)
        for split, name in conflicts:
            yield from self.notice_once(
                f"one row of {split!r} has two different values called {name!r}; the later one "
                "is logged. Rename one."
            )
        for split, row in rows.items():
            yield from self.emit(Logged(*self.header(), split, row))

    def _save(self, tag: str, metrics: Any, failed: bool = False) -> Events:
        """Write a checkpoint, at most one per step; if that fails, emit one `Notice` and continue."""
        runtime, step = self.runtime, self.state.progress.step
        if not runtime.checkpoints.is_due(step):
            return
        runtime.phase = "save"
        with runtime.clock.paused():
            if failed:
                state = state_to_save_after_failure(self.before_boundary or self.state)
            else:
                self.state = read_metrics(self.state)
                state = state_to_save(self.state)
            saved = runtime.checkpoints.save(state, metrics)
        for message in runtime.checkpoints.notices():
            yield from self.notice(message)
        if saved:
            yield from self.emit(Saved(*self.header(), tag, runtime.checkpoints.path))

    def _end(self) -> Events:
        """End the run: evaluate the last step if due, write the last checkpoint and log row."""
        runtime, status, step = self.runtime, self._status(), self.state.progress.step
        evaluates = status == "completed" and runtime.eval_data is not None and step
        if evaluates and not self.state.has_result("eval"):
            self.state = self.state.replace(pending=(*self.state.pending, Evaluate()))
            yield from self._act()
            status = self._status()
        assert status is not None
        yield from self._save("interrupted" if status == "interrupted" else "last", {})
        runtime.phase = "save"
        with runtime.ranks.together("write the last checkpoint"):
            runtime.checkpoints.finish()
        self.state = read_metrics(self.state)
        result = fit_result(self.state, runtime, status)
        if status == "completed" and 2 * result.skipped > result.step:
            advice = nonfinite_batch(self.last_batch) or "Check the loss and its inputs."
            yield from self.notice(f"{result.skipped_message}. {advice}")
        if status != "interrupted" and self.state.window.steps:
            # Log the last, partial window. After an interruption, the resumed run logs it in full.
            yield from self._end_window(None)
            yield from self._log()
        yield from self.emit(TrainEnd(*self.header(), result))

    def _fail(self, error: Exception) -> Events:
        """Emit `Failure` for an exception of the run; write a checkpoint if the state is intact."""
        runtime, phase = self.runtime, self.runtime.phase
        if not is_intact(self.state.train):
            self.state = self.state.replace(train=None)
        yield from self.emit(Failure(*self.header(), error, phase), strict=False)
        if self.state.train is not None and phase != "save":
            note_unreadable_metrics(error, self.before_boundary or self.state)
            try:
                yield from self._save("failed", {}, failed=True)
                runtime.checkpoints.finish()
            except Exception as another:
                error.add_note(
                    f"The checkpoint of the failed run could not be written either: {another}"
                )
        result = fit_result(self.state, runtime, "failed", error)
        attach_result(error, result, phase, runtime.checkpoints.last)
        yield from self.emit(TrainEnd(*self.header(), result), strict=False)

    def _status(self) -> Status | None:
        return status_of(self.runtime.plan, self.state, self.runtime.signals.received)
