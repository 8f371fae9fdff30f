"""Law 6: a step with non-finite gradients changes nothing but the loss scale and the key.

Read next: `resume.py`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._words import one_line
from ftrain.core.state import TrainState
from ftrain.testing._copies import copied
from ftrain.testing.difference import Difference, dense, first_difference
from ftrain.testing.laws._exact import finite, is_float
from ftrain.testing.laws._restored_state import unchanging
from ftrain.testing.laws._scales import require_same_update, skipped_in
from ftrain.testing.laws._subject import InapplicableError, Subject, name_of, subject_of
from ftrain.testing.laws._words import amount
from ftrain.testing.report import LawViolation, Report, Row

__all__ = ["check_skip", "poisoned", "require_kept"]

Poison = Callable[[Any], Any]


@unchanging
def check_skip(
    subject: Any,
    batches: Sequence[Any],
    *,
    state: Any = None,
    seed: int = 0,
    poison: Poison | None = None,
    free: Sequence[str] = ("rng", "key", "scaler", "skipped"),
) -> Report:
    """Check law 6: a step with non-finite gradients changes only key, loss scaler and counters.

    The next step then makes the update that it would have made before: the loss scale, which the skipped
    step has lowered, has no influence.

    Args:
        subject: `Steps`, another `(init_state, train_step, eval_step)`, or a step
            `(state, batch) -> (state, metrics)`.
        batches: a list of batches. All are steps of the run; then the last one is poisoned.
        state: the state before the first batch; default: `init_state(seed)`.
        seed: of the initial state.
        poison: `(batch) -> batch` whose gradients are not finite; default: every float of the batch
            becomes NaN; if it has none, an infinity is put into the parameters of a `TrainState`.
        free: the fields of the state that may change: key, loss scale, count of skipped steps. A path,
            such as `".extras['count']"`, names a field inside of another.

    Returns:
        The report.

    Raises:
        LawViolation: the state changes, or the metric `skipped`, if there is one, is not 1.
        ValueError: the batch cannot be poisoned, the step raises for the poisoned batch, or all results
            of it are finite.

    Example:
        >>> def step(state, batch):
        ...     good = torch.isfinite(batch).all()
        ...     w = torch.where(good, state["w"] - batch, state["w"])
        ...     return {"w": w, "count": state["count"] + 1}, {"skipped": ~good}
        >>> state = {"w": torch.zeros(2), "count": torch.tensor(0)}
        >>> print(check_skip(step, [torch.ones(2)], state=state, free=["count"]).passed)
        True
        >>> check_skip(step, [torch.ones(2)], state=state)
        Traceback (most recent call last):
            ...
        ftrain.testing.report.LawViolation: law "skip": a skipped step changed the state at
        ['count']: expected 1, got 2 (1 of 1 elements differ)
          cause: ...
    """
    start = time.perf_counter()
    whole = subject_of(subject, batches, state, seed)
    last = whole.states()[-1]
    before, batch = poisoned(last, whole.batches[-1], poison)
    after, metrics = _poisoned_step(whole, before, batch)
    _require_poison(whole, after, metrics)
    row = require_kept(before, after, metrics, free=free)
    rows = [Row("state after a poisoned step", amount(before), "same bytes"), row]
    rows += require_same_update(whole, last, after, lambda path: _is_free(path, free))
    return Report("skip", True, tuple(rows), time.perf_counter() - start)


def poisoned(state: Any, batch: Any, poison: Poison | None = None) -> tuple[Any, Any]:
    """Return copies of a state and a batch, modified so that the gradients are non-finite.

    Raises:
        ValueError: the batch has no floats, and the state is not a `TrainState`.
    """
    state, batch = copied(state), copied(batch)
    if poison is not None:
        return state, poison(batch)
    if any(is_float(x) for x in tree.leaves(batch)):
        return state, tree.map(_nan, batch)
    if isinstance(state, TrainState):
        params = tree.leaves(state.params)
        if params:
            params[0].view(-1)[:1] = torch.inf
            return state, batch
    raise InapplicableError(
        "poison: expected a function, since the batch has no floats that could become NaN, got None. "
        "Pass poison=lambda batch: ..., which returns a batch with non-finite gradients."
    )


def _poisoned_step(whole: Subject, state: Any, batch: Any) -> tuple[Any, Any]:
    """Run the step on a poisoned batch, which a step or a loss may refuse.

    `nonfinite="raise"` does, and a loss that validates its values, as torch's distributions do.
    """
    try:
        return whole.stepped(state, batch)
    except Exception as error:
        raise InapplicableError(
            f"poison: expected a batch that {name_of(whole.step)} skips, but it raised "
            f"{type(error).__name__} for a batch with non-finite values: {one_line(error)} Pass "
            "poison=lambda batch: ..., which returns a batch that the loss accepts and whose gradients "
            "are not finite; steps that raise for such gradients skip none."
        ) from error


def _nan(leaf: Any) -> Any:
    return torch.full_like(leaf, torch.nan) if is_float(leaf) else leaf


def require_kept(before: Any, after: Any, metrics: Any, *, free: Sequence[str]) -> Row:
    """Raise if a skipped step changed a field that is not in `free`; return a row of the report."""
    skipped = skipped_in(metrics)
    if skipped is not None and int(skipped) != 1:
        raise LawViolation(
            "skip",
            f"the step with non-finite gradients was not skipped: expected metrics['skipped'] 1, "
            f"got {int(skipped)}",
            cause="the step does not test its gradients, or tests the loss alone.",
            remedy="Test every gradient after unscaling, before clipping: torch.isfinite(g).all().",
        )
    structural = tree.first_difference(after, before)
    if structural is not None:
        raise LawViolation("skip", f"a skipped step changed the state: {structural}")
    for path, was, now in zip(
        tree.paths(before), tree.leaves(before), tree.leaves(after), strict=True
    ):
        difference = None if _is_free(path, free) else first_difference(now, was)
        if difference is not None:
            raise _changed(path, difference, free)
    return Row(
        "metric skipped",
        "none" if skipped is None else "1 metric",
        "1" if skipped is not None else "not reported",
    )


def _require_poison(whole: Subject, after: Any, metrics: Any) -> None:
    """Raise if a poisoned batch (with NaN) gives finite results and the step has no metric `skipped`."""
    if skipped_in(metrics) is None and all(map(_is_finite, tree.leaves((after, metrics)))):
        raise InapplicableError(
            "poison: expected a batch with non-finite gradients, but the state and all metrics of "
            f"{name_of(whole.step)} are finite. Pass poison=lambda batch: ..., or report a metric "
            "'loss' or 'skipped'."
        )


def _is_finite(leaf: Any) -> bool:
    if isinstance(leaf, torch.Tensor):
        return bool(finite(dense(leaf)).all())
    return not isinstance(leaf, float) or math.isfinite(leaf)


def _is_free(path: str, free: Sequence[str]) -> bool:
    """Return True if `free` contains the name of a leaf's top-level field, or the start of its path."""
    top = path.lstrip(".['").split("'")[0].split("[")[0].split(".")[0]
    return top in free or any(name[:1] in (".", "[") and path.startswith(name) for name in free)


def _changed(path: str, difference: Difference, free: Sequence[str]) -> LawViolation:
    return LawViolation(
        "skip",
        f"a skipped step changed the state at {path or 'the root'}: "
        f"{_index(difference)}{difference.detail}",
        difference=dataclasses.replace(difference, path=path),
        cause=_cause(difference),
        remedy="Choose between all old and all new leaves at the end of the step: "
        "`tree.map(lambda old, new: torch.where(good, new, old), state, new_state)`; fields that count "
        f"skipped steps are named by free=[...] (now {', '.join(free)}).",
    )


def _index(difference: Difference) -> str:
    """Return the index of an element as text; `""` for a 0-d leaf."""
    return f"first at {difference.index}: " if difference.index else ""


def _cause(difference: Difference) -> str:
    got = difference.got
    if isinstance(got, float) and not math.isfinite(got):
        return "the step does not test its gradients for infinities and NaNs before it uses them."
    if isinstance(got, int):
        return "a counter, a schedule or a key moves on although no update was applied."
    return (
        "a part of the update is applied anyway: momentum, weight decay, an average or a statistic."
    )
