"""Momentum as a transformation: a decaying sum of the gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.optimizer import like
from ftrain.optim import _checks
from ftrain.optim._checked import checked
from ftrain.optim._leaves import add_scaled, matching_leaves, scalars_by_device, zeros_like
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = ["TraceState", "accumulated", "trace"]


class TraceState(NamedTuple):
    """State of `trace`.

    Attributes:
        momentum: the decaying sum, a tree like the parameters; at least float32.
    """

    momentum: PyTree


def trace(decay: Hyperparameter, *, nesterov: bool = False) -> GradientTransformation:
    r"""Replace gradients by their decaying sum.

    $$u = m = \mu m + g$$

    and with Nesterov's look-ahead $u = g + \mu m$.

    Args:
        decay: in [0, 1).
        nesterov: True for Nesterov's look-ahead.

    Returns:
        A transformation with a `TraceState`.

    Raises:
        ValueError: `decay` out of its range; gradients and parameters differ in structure or shape.

    Example:
        >>> heavy_ball = trace(0.5)
        >>> grads = {"w": torch.tensor([2.0])}
        >>> _, state = heavy_ball.update(grads, heavy_ball.init(grads))
        >>> heavy_ball.update(grads, state)
        ({'w': tensor([3.])}, TraceState(momentum={'w': tensor([3.])}))

    References:
        Sutskever, Martens, Dahl, Hinton (2013), "On the importance of initialization and momentum
        in deep learning".
    """
    _checks.fraction("decay", decay)

    def init(params: PyTree) -> TraceState:
        return TraceState(zeros_like(params))

    def update(
        grads: PyTree, state: TraceState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, TraceState]:
        if params is not None:
            matching_leaves(("params", params), ("grads", grads))
        (sums, gs), treedef = matching_leaves(
            ("state.momentum", state.momentum), ("grads", grads), strict_dtype=False
        )
        updates, sums = accumulated(gs, sums, decay, 1.0, nesterov)
        return tree.unflatten(treedef, updates), TraceState(tree.unflatten(treedef, sums))

    return checked("trace", TraceState, init, update)


def accumulated(
    grads: list[torch.Tensor],
    sums: list[torch.Tensor],
    decay: Hyperparameter,
    weight: Hyperparameter,
    nesterov: bool,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the update directions, and the new sums `m = decay m + weight g` of each leaf."""
    place = scalars_by_device(decay, weight)
    directions, new_sums = [], []
    for grad, m in zip(grads, sums, strict=True):
        decay_here, weight_here = place(m.device, m.dtype)
        g = grad.to(m.dtype)
        new = add_scaled(m * decay_here, g, weight_here)
        directions.append(add_scaled(g, new, decay_here) if nesterov else new)
        new_sums.append(like(new, m))
    return directions, new_sums
