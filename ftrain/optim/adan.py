"""Adan: Adam with Nesterov's momentum from the differences between gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, debias, each_leaf, started
from ftrain.optim._leaves import safe_sqrt, zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["AdanState", "adan"]


class AdanState(NamedTuple):
    """State of `adan`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
        diff: running mean of the differences between successive gradients; a tree like `mu`.
        nu: running mean of the squares of the extrapolated gradients; a tree like `mu`.
        previous: the last gradient, a tree like `mu`; initially zeros.
    """

    count: Count
    learning_rate: torch.Tensor
    mu: PyTree
    diff: PyTree
    nu: PyTree
    previous: PyTree


@algorithm
def adan(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.98,
    b2: Hyperparameter = 0.92,
    b3: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    *,
    eps_root: Hyperparameter = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return Adan: adaptive Nesterov momentum.

    $$u = -\eta \left( \frac{m / (1 - \beta_1^t) + \beta_2 d / (1 - \beta_2^t)}
    {\sqrt{v / (1 - \beta_3^t) + \epsilon_{root}} + \epsilon} + \lambda p \right)$$

    $$m = \beta_1 m + (1 - \beta_1) g, \quad d = \beta_2 d + (1 - \beta_2) (g - g'), \quad
    v = \beta_3 v + (1 - \beta_3) (g + \beta_2 (g - g'))^2$$

    where $g'$ is the previous gradient ($g' = g$ at the first update).

    The betas are the weights of earlier values, as in Adam and in the authors' code; the paper writes
    $1 - \beta$. `optax.adan` (0.2.8) weighs the differences by $1 - \beta_2$, 0.08, where paper and
    authors have 0.92. The decay is decoupled as in `adamw`; the paper divides by $1 + \eta \lambda$
    instead.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean difference, and the weight of differences, in [0, 1).
        b3: decay of the squares, in [0, 1).
        eps: >= 0, added to the square root.
        eps_root: >= 0, added under the square root.
        weight_decay: >= 0, multiplied by the learning rate.
        mask: the parameters that decay: a tree of bools, a function of the parameters, or None for all.

    Returns:
        A transformation with an `AdanState`. `update` needs `params` for weight decay only.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = adan(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> optimizer.update(params, optimizer.init(params))[0]
        {'w': tensor([-0.1000,  0.1000])}

    References:
        Xie, Zhou, Li, Lin, Yan (2022), [Adan: Adaptive Nesterov Momentum Algorithm for Faster
        Optimizing Deep Models](https://arxiv.org/abs/2208.06677).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.fraction("b3", b3)
    _checks.non_negative("eps", eps)
    _checks.non_negative("eps_root", eps_root)
    _checks.non_negative("weight_decay", weight_decay)
    decays = isinstance(weight_decay, torch.Tensor) or weight_decay > 0

    def init(params: PyTree) -> AdanState:
        if decays:
            mask_leaves(mask, params)
        memory = (zeros_like(params) for _ in range(4))
        return AdanState(*started(params, learning_rate), *memory)

    def update(
        grads: PyTree, state: AdanState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AdanState]:
        masked = mask_leaves(mask, params) if decays else None
        count, rate = state.count + 1, rate_at(learning_rate, state.count)
        updates, *memory = each_leaf(
            _rule,
            grads,
            params,
            {"mu": state.mu, "diff": state.diff, "nu": state.nu, "previous": state.previous},
            has_previous=(state.count > 0).to(torch.float64),
            one_b1=1 - b1,
            b2=b2,
            one_b2=1 - b2,
            b3=b3,
            one_b3=1 - b3,
            of_mean=-rate / debias(b1, count),
            of_diff=-rate * b2 / debias(b2, count),
            seen=debias(b3, count),
            eps=eps,
            eps_root=eps_root,
            mask=masked,
            shrink=rate * weight_decay,
        )
        return updates, AdanState(count, rate.float(), *memory)

    return checked("adan", AdanState, init, update, needs_params=decays and "weight_decay")


def _rule(
    leaf: Leaf,
    has_previous: Hyperparameter,
    one_b1: Hyperparameter,
    b2: Hyperparameter,
    one_b2: Hyperparameter,
    b3: Hyperparameter,
    one_b3: Hyperparameter,
    of_mean: Hyperparameter,
    of_diff: Hyperparameter,
    seen: Hyperparameter,
    eps: Hyperparameter,
    eps_root: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (m, d, v, previous) = leaf.grad, leaf.memory
    change = (g - previous) * has_previous
    ahead = g + change * b2
    m = torch.lerp(m, g, one_b1)
    d = torch.lerp(d, change, one_b2)
    v = torch.addcmul(v * b3, ahead * one_b3, ahead)
    u = (m * of_mean + d * of_diff) / (safe_sqrt(v / seen + eps_root) + eps)
    return u, m, d, v, g.clone()
