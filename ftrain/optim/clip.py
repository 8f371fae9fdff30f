"""Clipping: gradients of bounded length."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.norm import global_norm
from ftrain.optim import _checks
from ftrain.optim._leaves import gradients, placed
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = ["clip_by_global_norm"]


def clip_by_global_norm(max_norm: Hyperparameter) -> GradientTransformation:
    """Shrink all gradients by one factor so that their global norm is at most `max_norm`.

    `u = g min(1, max_norm / (||g|| + 1e-6))`: to the bit what `torch.nn.utils.clip_grad_norm_`
    does to gradients of float32 or float64. `optax.clip_by_global_norm` has no `1e-6`: it hands
    on unchanged what is shorter than `max_norm` and scales the rest to exactly that length, where
    this makes it shorter by a relative `1e-6 / ||g||`. A norm of NaN makes every update NaN, an
    infinite one makes it zero or NaN: whether to skip such a step is for the step to say.

    Args:
        max_norm: a finite number >= 0, in units of the gradient.

    Source: Pascanu, Mikolov, Bengio 2013, "On the difficulty of training recurrent neural
    networks".

    >>> clip_by_global_norm(1.0).update({"w": torch.tensor([3.0, 4.0])}, ())[0]
    {'w': tensor([0.6000, 0.8000])}
    """
    _checks.non_negative("max_norm", max_norm)

    def init(params: PyTree) -> PyTree:
        return ()

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        leaves, treedef = gradients(grads)
        if not leaves:
            return grads, state
        # The very expression of the step's `grad_norm`: a compiled step evaluates it once.
        norm = global_norm(grads)
        place = placed(torch.clamp(max_norm / (norm + 1e-6), max=1.0))

        def clipped(g: torch.Tensor) -> torch.Tensor:
            (factor,) = place(g.device, torch.promote_types(g.dtype, torch.float32))
            return (g * factor).to(g.dtype)

        return tree.unflatten(treedef, [clipped(g) for g in leaves]), state

    return GradientTransformation(init, update)
