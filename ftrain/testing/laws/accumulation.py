"""Law 5: gradients accumulated over micro-batches equal those of the whole batch.

Read next: `skip.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.accumulate import MicroBatches
from ftrain.core.state import TrainState
from ftrain.core.step import TrainStep
from ftrain.testing._copies import copied
from ftrain.testing.compare import relative_distance
from ftrain.testing.difference import Difference, first_difference
from ftrain.testing.laws._exact import ConstantDraws, doubled, in_float64, is_float
from ftrain.testing.laws._restored_state import unchanging
from ftrain.testing.laws._subject import InapplicableError, Subject, name_of, outputs_of, subject_of
from ftrain.testing.laws._traced import plain
from ftrain.testing.laws._words import amount, plural
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["Accumulated", "check_accumulation"]

Accumulated = Callable[[Any, Sequence[Any]], tuple[Any, Any]]

_PARTS = (2, 4, 8)
# Default of `relative` if the model runs in float64; a loss that casts its logits to float32 adds 1e-8.
# `_ROUNDED`: for other models, by the dtype of the parameters.
_EXACT = 1e-6
_ROUNDED = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}
_UPDATES = 1e-3  # for steps not made by ftrain: updates in float32 have lost digits


@unchanging
def check_accumulation(
    subject: Any,
    batches: Sequence[Any],
    *,
    state: Any = None,
    seed: int = 0,
    parts: Sequence[int] = (),
    ragged: bool = False,
    accumulated: Accumulated | None = None,
    relative: float | None = None,
) -> Report:
    """Check law 5: the gradients of a batch cut into micro-batches equal those of the whole batch.

    Parameters, buffers and batch are cast to float64 if the model runs in it, and every draw gives the
    same number, so that neither rounding nor dropout hides a wrong weight.

    Args:
        subject: `Steps` of `ftrain.make_steps`; with `accumulated`, any step.
        batches: a list of batches.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        parts: the numbers of micro-batches; default: 2, 4 and 8, times the step's `accumulate`. Numbers
            that do not divide the number of rows are left out.
        ragged: also cut the batch into parts of unequal size; the loss must then return `Mean(total,
            weight)`.
        accumulated: `(state, micro_batches) -> (state, metrics)`, the step of your own that accumulates;
            its updates are compared with those of `subject`, and the metric `loss`, if both have it.
        relative: the largest norm of the difference, divided by the norm of the gradients; default:
            1e-6; for a model that does not run in float64, 1e-5 to 3e-2 depending on its dtype; for
            updates, 1e-3.

    Returns:
        The report.

    Raises:
        LawViolation: the gradients differ; the message names the parameter.
        ValueError: the law does not apply, because the model computes statistics over a batch, or
            because no number in `parts` divides the number of rows.

    Example:
        >>> def step(state, batch):
        ...     return {"w": state["w"] - batch.mean()}, {}
        >>> def accumulated(state, parts):
        ...     return {"w": state["w"] - sum(part.mean() for part in parts)}, {}
        >>> check_accumulation(
        ...     step, [torch.ones(4)], state={"w": torch.zeros(2)}, accumulated=accumulated
        ... )
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "accumulation": 2 micro-batches give another update
        than the whole batch: ['w'] at (0,): expected -1.0, got -2.0 (... ulps; 2 of 2 elements differ)
        (relative norm 1, at most 0.001)
          cause: ...
    """
    start = time.perf_counter()
    whole = subject_of(subject, batches, state, seed)
    step = plain(whole.step)
    rows: list[Row] = []
    for batch in whole.batches:
        if accumulated is not None:
            rows += _updates(whole, accumulated, batch, parts or _PARTS, ragged, relative)
        elif isinstance(step, TrainStep):
            rows += _gradients(step, whole.state, batch, parts, ragged, relative)
        else:
            raise InapplicableError(
                "accumulated: expected a function (state, micro_batches) -> (state, metrics), since the "
                f"subject {name_of(step)} is not a step of ftrain.make_steps, got None. Pass "
                "accumulated=..."
            )
    return Report("accumulation", True, tuple(dict.fromkeys(rows)), time.perf_counter() - start)


def _gradients(
    step: TrainStep,
    state: TrainState,
    batch: Any,
    parts: Sequence[int],
    ragged: bool,
    relative: float | None,
) -> list[Row]:
    if step.batch_statistics:
        raise InapplicableError(
            f"subject: expected a model without statistics over a batch, got "
            f"{', '.join(step.batch_statistics)}: micro-batches have statistics of their own. Check a "
            "model with GroupNorm or LayerNorm."
        )
    k = step.accumulate
    cuts = _cuts(batch, [k * p for p in parts or _PARTS], ragged)
    exact, expected, state, batch = _whole(step, state, batch)
    for cut, slices in cuts.items():
        micro = MicroBatches(tuple(_rows(batch, each) for each in slices))
        with ConstantDraws(), in_float64() if exact else contextlib.nullcontext():
            got = step.gradients(copied(state), micro)
        limit = relative if relative is not None else _limit(state, exact)
        _compare(cut, "gradient", got.grads, expected.grads, limit)
        _compare(cut, "loss", got.metrics["loss"], expected.metrics["loss"], max(limit, 1e-6))
    dtype = "float64" if exact else "their own dtype"
    return [Row(f"gradients of {cut}, in {dtype}", amount(expected.grads), "equal") for cut in cuts]


def _whole(step: TrainStep, state: TrainState, batch: Any) -> tuple[bool, Any, TrainState, Any]:
    """Compute the gradients of the whole batch, in float64 if the step can run in it."""
    exact = state.replace(params=doubled(state.params), buffers=doubled(state.buffers))
    for is_exact, each, rows in (
        (True, exact, doubled(batch)),
        (False, copied(state), copied(batch)),
    ):
        try:
            with ConstantDraws(), in_float64() if is_exact else contextlib.nullcontext():
                result = step.gradients(each, rows)
                other = step.gradients(each.replace(rng=each.rng ^ 0x2A5), rows)
        except (RuntimeError, TypeError, ValueError):
            if not is_exact:
                raise
            continue  # the model does not run in float64: repeat in its own dtype
        if first_difference(other.grads, result.grads) is not None:
            raise InapplicableError(
                "subject: expected a step whose draws can be made constant, got one that draws integers "
                "or permutations, which differ between micro-batches. Check the model without them."
            )
        return is_exact, result, each, rows
    raise AssertionError  # unreachable: the second attempt returns or raises


def _updates(
    whole: Subject,
    accumulated: Accumulated,
    batch: Any,
    parts: Sequence[int],
    ragged: bool,
    relative: float | None,
) -> list[Row]:
    limit = _UPDATES if relative is None else relative
    with ConstantDraws():
        new, metrics = whole.stepped(whole.state, batch)
        expected = _change(new, whole.state)
        cuts = _cuts(batch, parts, ragged)
        for cut, slices in cuts.items():
            micro = [_rows(copied(batch), each) for each in slices]
            state, of_parts = outputs_of(accumulated(copied(whole.state), micro))
            _compare(cut, "update", _change(state, whole.state), expected, limit)
            if isinstance(metrics, Mapping) and "loss" in metrics and "loss" in of_parts:
                _compare(cut, "loss", of_parts["loss"], metrics["loss"], limit)
    return [Row(f"updates of {cut}", amount(expected), "equal") for cut in cuts]


def _change(new: Any, old: Any) -> Any:
    """Return new minus old for each floating-point tensor of a state; 0 for other leaves."""
    return tree.map(
        lambda a, b: a.double() - b.double() if is_float(b) else torch.zeros(()), new, old
    )


def _cuts(batch: Any, parts: Sequence[int], ragged: bool) -> dict[str, list[slice]]:
    """Return `{name of a division into micro-batches: slices of rows}`.

    Raises:
        InapplicableError: no number divides the rows.
    """
    sizes = {x.shape[0] if x.ndim else None for x in tree.leaves(batch)}
    size = sizes.pop() if len(sizes) == 1 else None
    cuts = {}
    for k in parts:
        if size and size % k == 0 and size >= k:
            n = size // k
            cuts[plural(k, "micro-batch", "micro-batches")] = [
                slice(i, i + n) for i in range(0, size, n)
            ]
    if ragged and size and size > 2:
        cuts["2 unequal micro-batches"] = [slice(0, 1), slice(1, size)]
    if not cuts:
        raise InapplicableError(
            f"batches: expected leaves whose number of rows is a multiple of one of {list(parts)}, got "
            f"{[list(x.shape) for x in tree.leaves(batch)]}. Pass a batch with 8 rows, or parts=[...]."
        )
    return cuts


def _rows(batch: Any, rows: slice) -> Any:
    return tree.map(lambda x: x[rows].clone(), batch)


def _limit(state: TrainState, exact: bool) -> float:
    if exact:
        return _EXACT
    return max(
        (_ROUNDED.get(x.dtype, 1e-5) for x in tree.leaves(state.params) if is_float(x)),
        default=1e-5,
    )


def _compare(cut: str, what: str, got: Any, expected: Any, limit: float) -> None:
    apart = relative_distance(got, expected)
    if apart <= limit:
        return
    difference = _worst(got, expected)
    raise LawViolation(
        "accumulation",
        f"{cut} give another {what} than the whole batch: {difference} "
        f"(relative norm {apart:.3g}, at most {limit:.3g})",
        difference=difference,
        cause="each micro-batch is averaged by itself and all averages count the same, whatever number "
        "of rows, tokens or positive weights they have; or a part is summed and not averaged; or "
        "gradients are clipped, or weights decayed, once for each part.",
        remedy="Sum totals and weights over the micro-batches and divide once: return "
        "`ftrain.Mean(total, weight)` from the loss function.",
    )


def _worst(got: Any, expected: Any) -> Difference | None:
    """Return the difference at the leaf with the largest distance."""
    rows = list(zip(tree.paths(got), tree.leaves(got), tree.leaves(expected), strict=True))
    path, a, b = max(rows, key=lambda row: float((row[1].double() - row[2].double()).norm()))
    difference = first_difference(a, b)
    return None if difference is None else dataclasses.replace(difference, path=path)
