"""The loop that every elementwise algorithm shares: one rule, at each leaf, on checked trees.

An algorithm then reads as its paper does: the scalars of this update (computed once, in float64),
and a rule from gradient and memory to update and new memory. `adam.py` writes the same loop out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.optimizer import like
from ftrain.optim._leaves import agreeing, first_device, parameters, placed
from ftrain.optim._rate import LearningRate, double, rate_at, zero_count
from ftrain.optim.protocol import Hyperparameter, PyTree

__all__ = ["Leaf", "debias", "each_leaf", "started"]


class Leaf(NamedTuple):
    """What a rule is given: everything in the dtype that the leaf's memory is kept in.

    Attributes:
        grad: the gradient.
        param: the parameter; the gradient where `update` was given none (then no rule reads it).
        masked: whether the mask is true here; false without a mask.
        memory: the leaf of each tree of the memory, in their order.
        scalars: the scalars of this update, in their order, on the leaf's device.
    """

    grad: torch.Tensor
    param: torch.Tensor
    masked: bool
    memory: tuple[torch.Tensor, ...]
    scalars: tuple[Hyperparameter, ...]


Rule = Callable[[Leaf], tuple[torch.Tensor, ...]]
"""From a leaf to its update and its new memory, in the order of the old."""


def each_leaf(
    rule: Rule,
    grads: PyTree,
    params: PyTree | None,
    memory: Mapping[str, PyTree],
    scalars: Sequence[Hyperparameter],
    *,
    mask: Sequence[bool] | None = None,
    shrink: Hyperparameter | None = None,
) -> tuple[PyTree, ...]:
    """Apply the rule at every leaf.

    Args:
        rule: from a `Leaf` to `(update, *new memory)`.
        grads: the gradients.
        params: the parameters, or None where the rule reads none.
        memory: by its name in the state, each tree of the algorithm's memory; at least one.
        scalars: what is common to all leaves: numbers and 0-d tensors.
        mask: one bool for each leaf.
        shrink: decoupled weight decay: `shrink p` is taken off the update where the mask is true.

    Returns:
        The updates, then each tree of the new memory, in the order of the old.
    """
    named = [(f"state.{name}", values) for name, values in memory.items()]
    columns, treedef = agreeing(*named, ("grads", grads), strict_dtype=False)
    *olds, gs = columns
    ps = gs
    if params is not None:
        (ps, _), _ = agreeing(("params", params), ("grads", grads))
    place = placed(*scalars, 0.0 if shrink is None else shrink)
    news: list[list[torch.Tensor]] = [[] for _ in columns]
    for index, (g, p, *old) in enumerate(zip(gs, ps, *olds, strict=True)):
        dtype = old[0].dtype
        *here, shrink_here = place(old[0].device, dtype)
        masked = mask is not None and mask[index]
        leaf = Leaf(g.to(dtype), p.to(dtype), masked, tuple(old), tuple(here))
        update, *new = rule(leaf)
        if masked and shrink is not None:
            update = update - leaf.param * shrink_here
        kept = [like(now, before) for now, before in zip(new, old, strict=True)]
        for column, value in zip(news, (update, *kept), strict=True):
            column.append(value)
    return tuple(tree.unflatten(treedef, column) for column in news)


def started(params: PyTree, learning_rate: LearningRate) -> tuple[torch.Tensor, torch.Tensor]:
    """The first count and the rate to report before the first update, of a checked tree."""
    leaves, _ = parameters(params)
    count = zero_count(first_device(leaves))
    return count, rate_at(learning_rate, count).float()


def debias(decay: Hyperparameter, count: torch.Tensor) -> torch.Tensor:
    """`1 - decay^count`: the weight in a running mean of what it has seen, in float64."""
    return 1 - double(decay, count.device) ** count.to(torch.float64)
