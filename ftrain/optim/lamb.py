"""LAMB: Adam with each layer's step scaled to the norm of its weights, for very large batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, debias, each_leaf, started
from ftrain.optim._leaves import safe_sqrt, zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at
from ftrain.optim._trust_ratio import trust_ratio
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["LAMBState", "lamb"]


class LAMBState(NamedTuple):
    """State of `lamb`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
        nu: running mean of the squared gradients; a tree like `mu`.
    """

    count: Count
    learning_rate: torch.Tensor
    mu: PyTree
    nu: PyTree


@algorithm
def lamb(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-6,
    *,
    weight_decay: Hyperparameter = 0.0,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return LAMB: Adam with layerwise adaptation.

    $$u = -\eta \, \frac{\lVert p \rVert}{\lVert d \rVert} \, d, \qquad
    d = \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda p$$

    with the moments of `adam`. If a norm is 0 the ratio is 1. Where the mask is False, the update is
    Adam's, without ratio and decay.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: >= 0, added to the square root of the bias-corrected `v`.
        weight_decay: >= 0, multiplied by the learning rate and the ratio.
        mask: a tree of bools, a function of the parameters, or None for all: the parameters to adapt and
            decay. Default: `optim.matrices`, which excludes vectors and scalars; `optim.everything`
            adapts all, as optax does.

    Returns:
        A transformation with a `LAMBState`. `update` needs `params`.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = lamb(0.1)
        >>> params = {"w": torch.tensor([[3.0, -4.0]])}
        >>> optimizer.update(params, optimizer.init(params), params)[0]
        {'w': tensor([[-0.3536,  0.3536]])}

    References:
        You, Li, Reddi et al. (2020), [Large Batch Optimization for Deep Learning: Training BERT in
        76 minutes](https://arxiv.org/abs/1904.00962).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.non_negative("eps", eps)
    _checks.non_negative("weight_decay", weight_decay)

    def init(params: PyTree) -> LAMBState:
        mask_leaves(mask, params)
        return LAMBState(*started(params, learning_rate), zeros_like(params), zeros_like(params))

    def update(
        grads: PyTree, state: LAMBState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, LAMBState]:
        count, rate = state.count + 1, rate_at(learning_rate, state.count)
        updates, mu, nu = each_leaf(
            _rule,
            grads,
            params,
            {"mu": state.mu, "nu": state.nu},
            mask=mask_leaves(mask, params),
            one_b1=1 - b1,
            b2=b2,
            one_b2=1 - b2,
            seen1=debias(b1, count),
            seen2=debias(b2, count),
            eps=eps,
            weight_decay=weight_decay,
            step=-rate,
        )
        return updates, LAMBState(count, rate.float(), mu, nu)

    return checked("lamb", LAMBState, init, update, needs_params=True)


def _rule(
    leaf: Leaf,
    one_b1: Hyperparameter,
    b2: Hyperparameter,
    one_b2: Hyperparameter,
    seen1: Hyperparameter,
    seen2: Hyperparameter,
    eps: Hyperparameter,
    weight_decay: Hyperparameter,
    step: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (m, v) = leaf.grad, leaf.memory
    p = leaf.param.to(g.dtype)
    m = torch.lerp(m, g, one_b1)
    v = torch.addcmul(v * b2, g * one_b2, g)
    d = m / seen1 / (safe_sqrt(v / seen2) + eps)
    if not leaf.masked:
        return d * step, m, v
    d = d + p * weight_decay
    return d * (trust_ratio(p, d) * step), m, v
