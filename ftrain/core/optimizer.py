"""Optimizer protocol of the core: a pair of pure functions.

Read next: `ftrain.optim`, which contains the optimizers.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ftrain.core import tree
from ftrain.core._words import dtype_and_shape

__all__ = ["Optimizer", "apply_updates"]


class Optimizer(Protocol):
    """Pair of functions `init(params) -> opt_state` and `update(grads, opt_state, params, **extra)`."""

    @property
    def init(self) -> Any:
        """Function `(params) -> opt_state`."""

    @property
    def update(self) -> Any:
        """Function `(grads, opt_state, params, **extra) -> (updates, opt_state)`."""


def apply_updates(params: Any, updates: Any) -> Any:
    """Return the parameters after one update, `params + updates`, in their own dtypes and strides.

    The sum is computed in the wider of the two dtypes and rounded once, so float32 updates of bfloat16
    parameters are not rounded before the addition.

    Args:
        params: a tree of floating tensors.
        updates: a tree of the same structure and shapes.

    Returns:
        New tensors; `params` are not changed.

    Raises:
        ValueError: structure or shapes differ; the message names the first path.
        TypeError: an update is not a floating tensor.

    >>> apply_updates({"w": torch.ones(2)}, {"w": torch.tensor([0.5, -0.5])})
    {'w': tensor([1.5000, 0.5000])}
    """
    olds, treedef = tree.flatten(params)
    deltas, delta_def = tree.flatten(updates)
    if delta_def != treedef:
        difference = tree.first_difference(updates, params)
        raise ValueError(
            f"`updates` and `params` differ in structure, {difference}. Return one update for each "
            "parameter."
        )
    news = []
    for index, (old, delta) in enumerate(zip(olds, deltas, strict=True)):
        if not isinstance(delta, torch.Tensor) or not delta.is_floating_point():
            kind = delta.dtype if isinstance(delta, torch.Tensor) else type(delta).__name__
            path = tree.paths(params)[index] or "the root"
            raise TypeError(
                f"`updates` at {path}: expected a floating-point tensor, got {kind}. Convert "
                "it: .float()."
            )
        if delta.shape != old.shape:
            path = tree.paths(params)[index] or "the root"
            raise ValueError(
                f"`updates` at {path}: expected shape {tuple(old.shape)}, as in `params`, got "
                f"{tuple(delta.shape)}. Updates are not broadcast: reshape this one."
            )
        news.append(like(old + delta, old))
    return tree.unflatten(treedef, news)


def like(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Return `new` in the dtype and strides of `old`, so that a state keeps its memory layout."""
    if new.dtype != old.dtype:
        new = new.to(old.dtype)
    if new.stride() == old.stride():
        return new
    # Made from `new`, over which a vmap may map even if it does not map over `old`.
    empty = new.new_empty_strided(old.shape, old.stride())
    try:
        return empty.copy_(new)
    except RuntimeError as error:
        shown = dtype_and_shape(old.dtype, old.shape)
        raise ValueError(
            f"a tensor of the state, {shown} with strides {list(old.stride())}: expected elements "
            "with memory of their own, got an expanded tensor, in which several share one location. Use "
            ".clone(memory_format=torch.contiguous_format) where it is made."
        ) from error
