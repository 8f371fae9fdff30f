"""Evaluation during a run, with its events, its result in the history and its row of the log.

Read next: `_evaluate.py`, which evaluates one state over the data.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ftrain.loop._batches import length
from ftrain.loop._compiled_steps import is_compiled_next, timed_first_call
from ftrain.loop._emitter import Emitter
from ftrain.loop._evaluate import evaluate
from ftrain.loop._nan_loss import nan_eval_loss_message
from ftrain.loop.callback import Evaluate, Log
from ftrain.loop.events import CompileBegin, CompileEnd, EvaluateBegin, EvaluateEnd

__all__ = ["run_evaluation"]


def run_evaluation(run: Emitter, action: Evaluate) -> Generator[Any, Any, bool]:
    """Run an `Evaluate` action; if a signal interrupts it, restore the state and return False.

    Emit `EvaluateBegin` and `EvaluateEnd`, add the result to the history, and request a row of the log.

    Args:
        run: the run, in its state at a boundary, with the action as the first of its pending actions.
        action: the requested evaluation.

    Raises:
        ValueError: the run has no evaluation data or no evaluation step.
    """
    runtime, before, name = run.runtime, run.state, action.name
    split = f"eval/{name}" if name else "eval"
    if before.has_result(split):
        run.state = before.replace(pending=before.pending[1:])
        return True
    if runtime.eval_data is None or runtime.eval_step is None:
        missing = "eval_data" if runtime.eval_data is None else "an eval_step"
        raise ValueError(
            f"Evaluate: expected a run with {missing}, got one without. Write "
            "Trainer((step, eval_step)) and fit(..., eval_data=...), or do not request evaluations."
        )
    runtime.phase = "evaluate"
    yield from run.emit(EvaluateBegin(*run.header(), name, length(runtime.eval_data)))
    eval_step, compiled = runtime.eval_step, []
    if is_compiled_next(eval_step):
        yield from run.emit(CompileBegin(*run.header(), "evaluation step"))

        def report(seconds: float) -> None:
            compiled.append(CompileEnd(*run.header(), "evaluation step", seconds))
            run.dispatch(compiled[0])

        eval_step = timed_first_call(eval_step, report)
    # Evaluations of another state cannot be saved as pending, so no signal interrupts them.
    pending = [each for each in before.pending if isinstance(each, Evaluate)]
    resumable = all(each.state is None for each in pending)
    with runtime.clock.paused() as pause:
        totals = evaluate(
            eval_step,
            run.state.train if action.state is None else action.state,
            runtime.eval_data,
            runtime.count_eval_samples,
            lambda: resumable and runtime.signals.received is not None,
            runtime.turns,
        )
    for event in compiled:
        if runtime.wanted(CompileEnd):
            yield from run.yield_event(event)
    if totals is None:
        run.state = before
        return False
    epoch, step, *_ = run.state.progress
    result = totals.result(split, epoch, step, pause.seconds)
    prefix = f"{name}/" if name else ""
    row = {f"{prefix}{key}": value for key, value in result.values().items()}
    noticed = (run.state.train, runtime.eval_data, runtime.noticed)
    yield from run.notice_once(nan_eval_loss_message(result.values(), *noticed))
    run.state = run.state.replace(
        history=(*run.state.history, result),
        pending=(*run.state.pending[1:], Log(row, "eval")),
    )
    yield from run.emit(EvaluateEnd(*run.header(), result, name))
    return True
