"""Transformations without memory that treat each leaf by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.optim import _checks
from ftrain.optim._leaves import agreeing, compute_dtype, gradients, placed
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = ["leafwise", "leafwise_with_params"]


def leafwise(
    function: Callable[..., torch.Tensor], *scalars: Hyperparameter
) -> GradientTransformation:
    """`u = function(g, *scalars)` for each leaf.

    0-d tensors among `scalars` arrive in the dtype that the leaf is computed in.
    """

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        leaves, treedef = gradients(grads)
        place = placed(*scalars)
        updates = [function(g, *place(g.device, compute_dtype(g.dtype))) for g in leaves]
        return tree.unflatten(treedef, updates), state

    return GradientTransformation(_stateless, update)


def leafwise_with_params(
    name: str, function: Callable[..., torch.Tensor], *scalars: Hyperparameter
) -> GradientTransformation:
    """`u = function(g, p, *scalars)` for each leaf; `name` is who needs the parameters."""

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        params = _checks.needed(name, params)
        (ps, gs), treedef = agreeing(("params", params), ("grads", grads))
        place = placed(*scalars)
        updates = [
            function(g, p, *place(g.device, compute_dtype(p.dtype)))
            for g, p in zip(gs, ps, strict=True)
        ]
        return tree.unflatten(treedef, updates), state

    return GradientTransformation(_stateless, update)


def _stateless(params: PyTree) -> PyTree:
    return ()
