"""Weight decay as a transformation: a multiple of the parameters added to the gradients."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree
from ftrain.optim import _checks
from ftrain.optim._checked import required_params
from ftrain.optim._leaves import (
    add_scaled,
    compute_dtype,
    matching_leaves,
    parameters,
    scalars_by_device,
)
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = ["add_decayed_weights", "decayed"]


def add_decayed_weights(
    weight_decay: Hyperparameter, *, mask: Mask = matrices
) -> GradientTransformation:
    """Add a multiple of the parameters: `u = g + weight_decay p` where the mask is True.

    Before an algorithm this is the L2 penalty of `torch.optim.SGD` and `Adam`; between
    `scale_by_adam` and `scale_by_learning_rate` it is the decoupled decay of AdamW.

    Args:
        weight_decay: a finite number >= 0.
        mask: a tree of bools, a function of the parameters, or None for all. Default: `optim.matrices`,
            no decay on vectors and scalars; `optim.everything` decays all, as torch and optax do.

    Raises:
        ValueError: the mask's structure is not that of the parameters; or `update` is called
            without parameters.

    Example:
        >>> params = {"w": torch.tensor([[2.0]]), "b": torch.tensor([2.0])}
        >>> grads = {"w": torch.tensor([[1.0]]), "b": torch.tensor([1.0])}
        >>> add_decayed_weights(0.5).update(grads, (), params)[0]
        {'w': tensor([[2.]]), 'b': tensor([1.])}
    """
    _checks.non_negative("weight_decay", weight_decay)

    def init(params: PyTree) -> PyTree:
        parameters(params)
        mask_leaves(mask, params)
        return ()

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        params = required_params("add_decayed_weights", params)
        (ps, gs), treedef = matching_leaves(("params", params), ("grads", grads))
        return tree.unflatten(
            treedef, decayed(gs, ps, weight_decay, mask_leaves(mask, params))
        ), state

    return GradientTransformation(init, update)


def decayed(
    grads: list[torch.Tensor],
    params: list[torch.Tensor],
    weight_decay: Hyperparameter,
    mask: list[bool],
) -> list[torch.Tensor]:
    """Return `g + weight_decay p` where the mask is True, else `g`, in compute dtypes."""
    place = scalars_by_device(weight_decay)
    out = []
    for g, p, decays in zip(grads, params, mask, strict=True):
        dtype = compute_dtype(p.dtype)
        (rate,) = place(p.device, dtype)
        out.append(add_scaled(g.to(dtype), p.to(dtype), rate) if decays else g.to(dtype))
    return out
