"""Loop that applies an algorithm's update rule to each parameter, after checks of the trees.

An algorithm can then be written as in its paper: the scalars of an update, computed once in float64, and
a rule that maps gradient and memory (the leaf's optimizer state) to the update and the new memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.optimizer import like
from ftrain.optim._checked import required_params
from ftrain.optim._leaves import (
    compute_dtype,
    first_device,
    gradients,
    matching_leaves,
    parameters,
    scalars_by_device,
)
from ftrain.optim._rate import LearningRate, double, rate_at, zero_count
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = ["Leaf", "Place", "Rule", "Together", "debias", "each_leaf", "started", "stateless"]


class Leaf(NamedTuple):
    """One parameter with its gradient and optimizer state: the first argument of an update rule.

    Attributes:
        grad: the gradient, which a rule gets in the dtype of the memory, if there is any.
        param: the parameter in its own dtype; the gradient if `update` was called without parameters.
        masked: True where the mask is; False without a mask.
        memory: the leaf of each tree of the memory, in their order.
        also: the entry of `also` for this leaf.
    """

    grad: torch.Tensor
    param: torch.Tensor
    masked: bool = False
    memory: tuple[torch.Tensor, ...] = ()
    also: Any = None


Rule = Callable[..., tuple[torch.Tensor, ...]]
"""`(leaf, **scalars) -> (update, *new memory)`; each further tensor becomes a leaf of a further tree."""

Place = Callable[[torch.device, torch.dtype], tuple[Mapping[str, Hyperparameter], Hyperparameter]]
"""`(device, dtype) -> (scalars by name, weight decay)`, converted to a device and dtype."""

Together = Callable[[Sequence[Leaf], Place], Sequence[tuple[torch.Tensor, ...]] | None]
"""`(leaves, place) -> rows`: what a rule returns for all leaves, in the layout of their memory.

`None` where it cannot compute them.
"""


def each_leaf(
    rule: Rule,
    grads: PyTree,
    params: PyTree | None = None,
    memory: Mapping[str, PyTree] | None = None,
    *,
    mask: Sequence[bool] | None = None,
    shrink: Hyperparameter | None = None,
    also: Sequence[Any] | None = None,
    further: int = 0,
    together: Together | None = None,
    **scalars: Hyperparameter,
) -> tuple[PyTree, ...]:
    """Apply an update rule to every parameter; return trees of the updates and of the new state.

    Args:
        rule: `(leaf, **scalars) -> (update, *new memory)`.
        grads: the gradients.
        params: the parameters, or None if the rule reads none.
        memory: each tree of the algorithm's memory, by its name in the state.
        mask: one bool for each leaf.
        shrink: decoupled weight decay: `shrink p` is subtracted from the update where the mask is True.
        also: one value for each leaf, which the rule gets as `leaf.also`.
        further: the number of tensors that the rule returns beyond the update and the new memory.
        together: computes the rule for all leaves at once where it can.
        **scalars: numbers and 0-d tensors; the rule gets them on the leaf's device, in the dtype of its
            memory.

    Returns:
        The updates, each tree of the new memory in the order of `memory`, then one tree for each further
        tensor that the rule returns.
    """
    named = [(f"state.{name}", values) for name, values in (memory or {}).items()]
    if named:
        (*olds, gs), treedef = matching_leaves(*named, ("grads", grads), strict_dtype=False)
    else:
        olds, (gs, treedef) = [], gradients(grads)
    ps = gs
    if params is not None:
        (ps, _), _ = matching_leaves(("params", params), ("grads", grads))
    leaves = [
        Leaf(g, p, mask is not None and mask[index], tuple(old), also and also[index])
        for index, (g, p, *old) in enumerate(zip(gs, ps, *olds, strict=True))
    ]
    place = _named(scalars, 0.0 if shrink is None else shrink)
    rows = together(leaves, place) if together and leaves else None
    if rows is None:
        rows = [_row(rule, leaf, place, shrink is not None) for leaf in leaves]
    columns = zip(*rows, strict=True) if rows else [()] * (1 + len(olds) + further)
    return tuple(tree.unflatten(treedef, column) for column in columns)


def _row(rule: Rule, leaf: Leaf, place: Place, shrinks: bool) -> tuple[torch.Tensor, ...]:
    """Return the update and the new memory of a leaf, after decoupled weight decay."""
    olds, p = leaf.memory, leaf.param
    dtype = olds[0].dtype if olds else compute_dtype(p.dtype)
    here, shrink = place(p.device, dtype)
    if olds and leaf.grad.dtype is not dtype:
        leaf = leaf._replace(grad=leaf.grad.to(dtype))
    update, *new = rule(leaf, **here)
    if leaf.masked and shrinks:
        update = update - p.to(dtype) * shrink
    return update, *map(like, new, olds), *new[len(olds) :]


def _named(scalars: Mapping[str, Hyperparameter], shrink: Hyperparameter) -> Place:
    """Return a function that converts the named scalars and the weight decay to a device and dtype."""
    place = scalars_by_device(*scalars.values(), shrink)
    done: dict[tuple[torch.device, torch.dtype], Any] = {}

    def named(
        device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, Hyperparameter], Hyperparameter]:
        found = done.get((device, dtype))
        if found is None:
            *values, last = place(device, dtype)
            found = done[device, dtype] = dict(zip(scalars, values, strict=True)), last
        return found

    return named


def stateless(name: str | None, rule: Rule, **scalars: Hyperparameter) -> GradientTransformation:
    """Return a transformation without state that applies a rule to every leaf.

    Args:
        name: the transformation's name if its rule reads the parameters, else None.
        rule: `(leaf, **scalars) -> (update,)`.
        **scalars: as in `each_leaf`.
    """

    def init(params: PyTree) -> PyTree:
        return ()

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        params = None if name is None else required_params(name, params)
        (updates,) = each_leaf(
            rule,
            grads,
            params,
            None,
            mask=None,
            shrink=None,
            also=None,
            further=0,
            together=None,
            **scalars,
        )
        return updates, state

    return GradientTransformation(init, update)


def started(params: PyTree, learning_rate: LearningRate) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the update count (0) and the learning rate of an optimizer's initial state."""
    leaves, _ = parameters(params)
    count = zero_count(first_device(leaves))
    return count, rate_at(learning_rate, count).float()


def debias(decay: Hyperparameter, count: torch.Tensor) -> torch.Tensor:
    """Return `1 - decay^count`, the total weight in a running mean that began at 0, in float64."""
    return 1 - double(decay, count.device) ** count.to(torch.float64)
