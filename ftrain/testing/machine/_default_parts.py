"""Default parts of a `TrainingMachine`: a function that builds steps, and a batch with NaN."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import tree

__all__ = ["builder", "poisoned"]


def builder(steps: Any, *, needs_accumulate: bool) -> Callable[[int], Any]:
    """Return a function that builds steps for a given number of micro-batches.

    Raises:
        TypeError: `steps` is neither steps nor a function that builds them as needed.
    """
    if isinstance(steps, tuple) and not needs_accumulate:
        return lambda accumulate: steps
    takes = callable(steps) and "accumulate" in inspect.signature(steps).parameters
    if needs_accumulate and not takes:
        raise TypeError(
            "steps: expected a function with a parameter `accumulate`, because `accumulates` is given, "
            f"got {steps!r}. Write `def steps(accumulate): return make_steps(..., "
            "accumulate=accumulate)`."
        )
    if not callable(steps):
        raise TypeError(
            f"steps: expected Steps or a function that builds them, got {type(steps).__name__}. Pass "
            "`lambda: make_steps(...)`."
        )
    if takes:
        return lambda accumulate: steps(accumulate=accumulate)
    return lambda accumulate: steps()


def poisoned(batch: Any) -> Any:
    """Return the batch with NaN in place of the first element of each floating leaf."""
    return tree.map(_poisoned, batch)


def _poisoned(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point() or not leaf.numel():
        return leaf
    copy = leaf.clone(memory_format=torch.contiguous_format)
    copy.view(-1)[0] = torch.nan
    return copy
