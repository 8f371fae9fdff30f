"""Evaluation of a training state over a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ftrain.core.accumulate import MicroBatches
from ftrain.loop import _out_of_memory
from ftrain.loop._batches import Batches
from ftrain.loop._ensemble_members import members_of
from ftrain.loop._metric_columns import Columns, check_names, read
from ftrain.loop._metric_totals import MetricTotals
from ftrain.loop._one_rank import ALONE, Evaluated, OneRank
from ftrain.loop._unlogged_metrics import without_examples

__all__ = ["evaluate"]

_READ_EVERY = 1024  # batches; bounds the unread metrics on the device


def evaluate(
    eval_step: Callable[..., Any],
    state: Any,
    data: Batches,
    count_samples: Callable[[Any], tuple[int, int]],
    interrupted: Callable[[], bool] = lambda: False,
    turns: OneRank = ALONE,
) -> MetricTotals | None:
    """Evaluate a state over a data set; return `None` if `interrupted()` becomes true meanwhile.

    Metrics without a weight are weighted by the samples of their batch. If a batch runs out of memory,
    the evaluation restarts with all batches cut into more parts.

    Args:
        eval_step: `(state, batch) -> metrics`.
        state: the training state.
        data: the batches.
        count_samples: `batch -> (samples, tokens)`.
        interrupted: a function that returns True to end the evaluation.
        turns: the n ranks of which each evaluates every n-th batch. The result is that of one process.

    Returns:
        The totals of the metrics over all batches.

    Raises:
        MemoryError: a batch runs out of memory and cannot be cut further, or other ranks wait for its
            evaluation.
        ValueError: the data has no batch.
    """
    found: MetricTotals | int | None = 1
    while isinstance(found, int):
        found = _pass(eval_step, state, data, count_samples, interrupted, turns, found)
    return found


def _pass(
    eval_step: Callable[..., Any],
    state: Any,
    data: Batches,
    count_samples: Callable[[Any], tuple[int, int]],
    interrupted: Callable[[], bool],
    turns: OneRank,
    k: int,
) -> MetricTotals | int | None:
    """Evaluate all batches, each cut into k parts; after running out of memory, return a larger k."""
    totals = MetricTotals()
    unread: list[Evaluated] = []
    unchecked = True
    members = members_of(state)

    def read_in_order() -> list[Columns]:
        evaluated = [*turns.in_order(unread)]
        unread.clear()
        metrics = [each for of_batch in evaluated for each in of_batch.metrics]
        return read(metrics, [n for of_batch in evaluated for n in of_batch.rows], members)

    for batch, _ in data.batches(data.start(), epochs=1):
        if interrupted():
            return None
        position = totals.steps
        if not position:
            turns.check_turns(batch)
        totals = totals.add((), 1, *count_samples(batch))
        if turns.takes(position):
            try:
                parts = _parts(batch, k)
                found_parts = [eval_step(state, part) for part in parts]
            except Exception as error:
                if not _out_of_memory.is_out_of_memory(error):
                    raise
                smaller = _out_of_memory.next_cut(batch, k) if turns.repeats else None
                if smaller is None:
                    raise MemoryError(_out_of_memory.advice(state, batch, k, error)) from error
                _out_of_memory.release(error)
                return smaller
            if unchecked:
                unchecked = check_names(found_parts[0], members)
            rows = [count_samples(part)[0] for part in parts]
            unread.append(Evaluated(position, [*map(without_examples, found_parts)], rows))
        if totals.steps % (_READ_EVERY * turns.size) == 0:  # ranks have had equally many turns
            totals = totals.add(read_in_order())
    if not totals.steps:
        raise ValueError(
            "eval_data: expected at least one batch, got none. Pass data with at least one batch."
        )
    if turns.owes_a_call(totals.steps):
        eval_step(state, batch)
    return totals.add(read_in_order())


def _parts(batch: Any, k: int) -> tuple[Any, ...]:
    whole = batch if k == 1 else _out_of_memory.cut(batch, k)
    return whole.batches if isinstance(whole, MicroBatches) else (whole,)
