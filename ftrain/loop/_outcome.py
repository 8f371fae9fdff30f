"""Status and result of a run, computed from its limits (`Plan`) and its state."""

from __future__ import annotations

import signal as signals
from typing import Any

from ftrain.core import tree
from ftrain.core.errors import DonatedStateError
from ftrain.loop._clock import Clock
from ftrain.loop._runtime import Runtime
from ftrain.loop._schedule import is_last
from ftrain.loop.events import Plan
from ftrain.loop.result import EpochResult, FitResult, Status
from ftrain.loop.state import LoopState

__all__ = ["attach_result", "epoch_result", "fit_result", "is_intact", "status_of"]


def status_of(plan: Plan, state: LoopState, signal: int | None) -> Status | None:
    """Return the status of a run that has ended; `None` while it continues.

    Args:
        plan: the plan.
        state: the state after the work at a boundary.
        signal: number of the signal that was received; `None` if none was.
    """
    if state.pending:  # only a signal that interrupts an evaluation leaves actions pending
        return "interrupted"
    if is_last(plan, state):
        return "completed"
    if state.stop is not None:
        return "stopped"
    return "interrupted" if signal is not None else None


def epoch_result(state: LoopState, clock: Clock, *, whole: bool) -> EpochResult:
    """Return the metrics of the current epoch so far; the state must have no unread metrics.

    Args:
        state: the state.
        clock: the clock of the run.
        whole: True if the epoch is complete.
    """
    epoch, step, *_ = state.progress
    return state.epoch.result("train", epoch, step, clock.since("epoch"), whole)


def fit_result(
    state: LoopState, runtime: Runtime, status: Status, error: Exception | None = None
) -> FitResult:
    """Return the result of a run, including the metrics of an incomplete last epoch.

    The result of a failed run does not include these metrics.

    Args:
        state: the last state.
        runtime: the parts of the run.
        status: how the run ended.
        error: the exception that ended a failed run.
    """
    plan, history = runtime.plan, state.history
    if state.progress.batch and not state.epoch_ended and error is None:
        history = (*history, epoch_result(state, runtime.clock, whole=False))
    signal = runtime.signals.received if status == "interrupted" else None
    by_epochs = plan.epochs is not None and state.epochs_done >= plan.epochs
    reasons: dict[Status, str] = {
        "completed": _count(plan.epochs, "epoch") if by_epochs else _count(plan.max_steps, "step"),
        "stopped": "" if state.stop is None else state.stop.reason,
        "interrupted": "" if signal is None else signals.Signals(signal).name,
        "failed": f"{type(error).__name__}: {error}",
    }
    return FitResult(
        state=state.train,
        history=history,
        status=status,
        reason=reasons[status],
        step=state.progress.step,
        epoch=state.progress.epoch,
        checkpoint=runtime.checkpoints.path,
        signal=signal,
        error=error,
    )


def is_intact(train: Any) -> bool:
    """Return False if a failed step has overwritten the training state that was donated to it."""
    try:
        tree.leaves(train)
    except DonatedStateError:
        return False
    return True


def attach_result(error: Exception, result: FitResult, phase: str, last: int | None) -> None:
    """Attach a failed run's result to its exception, with a note that says where the state is.

    Args:
        error: the exception.
        result: the result.
        phase: the phase of the run in which the error was raised, such as "save".
        last: step of the newest checkpoint; `None`: there is none.
    """
    error.fit_result = result  # type: ignore[attr-defined]
    note = f"Training failed ({phase}) after step {result.step}, epoch {result.epoch}. "
    if result.checkpoint is not None:
        note += f"The last checkpoint is {result.checkpoint}. "
    if phase == "save":
        note = f"The run reached step {result.step}, epoch {result.epoch}, "
        note += (
            "and has no checkpoint. "
            if last is None
            else f"and its newest checkpoint is that of step {last}. "
        )
    if result.state is not None:
        note += (
            "The exception holds the state after that step: write `except Exception as error:` and "
            "read `error.fit_result.state`."
        )
    elif result.checkpoint is None:
        note += "The state is lost: it was donated to the step that failed. No checkpoint exists."
    error.add_note(note)


def _count(n: int | None, unit: str) -> str:
    return f"{n} {unit}" if n == 1 else f"{n} {unit}s"
