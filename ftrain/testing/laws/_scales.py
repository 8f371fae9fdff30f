"""Check that a loss scale lowered by a skipped step does not change the next update.

Read next: `skip.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.testing.difference import first_difference
from ftrain.testing.laws._close import apart_by_tree
from ftrain.testing.laws._exact import is_float
from ftrain.testing.laws._subject import Subject
from ftrain.testing.laws._words import amount
from ftrain.testing.report import LawViolation, Row

__all__ = ["require_same_update", "skipped_in"]

#: Largest relative difference of the update. If the update depends on the loss scale, half the scale
#: halves or doubles it. If it does not, only subnormal float16 gradients round differently.
_LIMIT = 0.1


def require_same_update(
    whole: Subject, before: Any, after: Any, is_free: Callable[[str], bool]
) -> list[Row]:
    """Raise unless the update after a skipped step is independent of the new loss scale.

    Args:
        whole: the step; its last batch has finite gradients.
        before: the state before the skipped step.
        after: the state after it.
        is_free: `(path) -> bool`; True if a skipped step may change the leaf. Floats among these leaves
            are taken to be loss scales.

    Returns:
        A list with one row of the report; empty if no scale has changed, or if this batch is skipped
        too.
    """
    paths, treedef = tree.paths(before), tree.structure(before)
    leaves = list(zip(paths, tree.leaves(before), tree.leaves(after), strict=True))
    scales = {
        path: new
        for path, old, new in leaves
        if is_float(old) and is_free(path) and first_difference(new, old) is not None
    }
    if not scales:
        return []
    # Only the scales are replaced: with the key of `before`, both steps draw the same numbers.
    scaled = tree.unflatten(treedef, [scales.get(path, old) for path, old, _ in leaves])
    runs = [whole.stepped(state, whole.batches[-1]) for state in (before, scaled)]
    if any(bool(skipped_in(metrics)) for _, metrics in runs):
        return []
    kept = {path: old for path, old, _ in leaves if is_float(old) and not is_free(path)}
    expected, got = (_changes(kept, state) for state, _ in runs)
    apart = apart_by_tree(got, expected, _LIMIT)
    if apart is None:
        return [Row("update of the next step", amount(kept), f"relative norm at most {_LIMIT}")]
    difference = dataclasses.replace(apart.difference, path=[*kept][_index(apart.difference.path)])
    raise LawViolation(
        "skip",
        "the new loss scale after a skipped step changes the next update: "
        f"{apart._replace(difference=difference)}",
        difference=difference,
        cause=f"the update depends on {', '.join(scales)}, which the skipped step has changed: "
        "gradients are clipped, or something is added to them, while the loss scale is still in them.",
        remedy="Unscale the gradients first; then test that they are finite, clip them, and update.",
    )


def _changes(before: dict[str, torch.Tensor], after: Any) -> list[torch.Tensor]:
    """Return the change of each leaf from `before` to `after`, in float64."""
    new = dict(zip(tree.paths(after), tree.leaves(after), strict=True))
    return [new[path].double() - old.double() for path, old in before.items()]


def _index(path: str) -> int:
    """Return the index in the path of a list entry, such as 3 for `[3]`."""
    return int(path.strip("[]"))


def skipped_in(metrics: Any) -> Any:
    """Return the metric `skipped`; `None` if the metrics do not have it."""
    if isinstance(metrics, torch.Tensor):
        return None
    try:
        return metrics["skipped"] if "skipped" in metrics else None  # noqa: SIM401  # Metrics has no get
    except TypeError:
        return None
