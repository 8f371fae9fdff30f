"""Check of step counts in floating point: at a large count, adding 1 no longer changes the value.

Read next: `fixpoint.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.testing.difference import first_difference
from ftrain.testing.laws._subject import Subject
from ftrain.testing.report import LawViolation

__all__ = ["require_counting"]

#: By dtype, the first integer n for which n + 1 rounds to n.
_LARGEST = {torch.bfloat16: 2**8, torch.float16: 2**11, torch.float32: 2**24}
#: Dtypes whose counts are not tested: integers do not round, and float64 is exact up to 2**53.
_EXACT = (torch.float64, torch.int8, torch.int16, torch.int32, torch.int64)


def require_counting(whole: Subject, states: Sequence[Any]) -> int:
    """Raise if a step count in the state stops growing at a large value; return the number of counts.

    A leaf is a step count if each step adds exactly 1 to it. The check sets such a leaf to the largest
    count of its dtype and runs a step, after which the leaf must have grown. A leaf that stops is
    allowed if the step no longer depends on a count of that size (Adam's bias corrections are 1 by
    then).

    Args:
        whole: the step, which runs once more.
        states: the states before each step and after the last, at least two steps.
    """
    paths = tree.paths(states[0])
    runs = list(zip(*map(tree.leaves, states), strict=True))
    counting = [place for place, run in enumerate(runs) if _counts(run)]
    for place in counting:
        first = runs[place][0]
        if first.dtype not in _LARGEST:
            continue
        largest = _LARGEST[first.dtype]
        new, twice = (_stepped(whole, states[0], place, count) for count in (largest, 2 * largest))
        stops = torch.equal(new.pop(place), torch.full_like(first, largest))
        del twice[place]
        if stops and first_difference(new, twice) is not None:
            dtype = str(first.dtype).removeprefix("torch.")
            raise LawViolation(
                "fixpoint",
                f"state{paths[place]} counts steps in {dtype} and stops at {largest:,}: expected "
                f"{largest + 1:,} after {largest:,}, got {largest:,}",
                cause=f"{dtype} has no number between {largest:,} and {largest + 2:,}.",
                remedy="Count in int64: torch.zeros((), dtype=torch.int64).",
            )
    return len(counting)


def _stepped(whole: Subject, state: Any, place: int, count: int) -> list[Any]:
    """Set one leaf of a state to `count`, run a step, and return the leaves of the new state."""
    leaves, treedef = tree.flatten(state)
    leaves[place] = torch.full_like(leaves[place], count)
    return tree.leaves(whole.stepped(tree.unflatten(treedef, leaves), whole.batches[0])[0])


def _counts(run: Sequence[Any]) -> bool:
    first = run[0]
    return (
        isinstance(first, torch.Tensor)
        and first.layout == torch.strided
        and (first.dtype in _LARGEST or first.dtype in _EXACT)
        and first.numel() > 0
        and bool((first == first.round()).all())
        and all(torch.equal(each, first + i) for i, each in enumerate(run))
    )
