"""Adamax: Adam whose divisor is a decaying maximum of the absolute gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, debias, each_leaf, started
from ftrain.optim._leaves import zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["AdamaxState", "adamax"]


class AdamaxState(NamedTuple):
    """State of `adamax`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
        nu: decaying maximum of the absolute gradients; a tree like `mu`.
    """

    count: Count
    learning_rate: torch.Tensor
    mu: PyTree
    nu: PyTree


@algorithm
def adamax(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
) -> GradientTransformation:
    r"""Return Adamax: Adam in the infinity norm.

    $$u = -\eta \, \frac{m}{(1 - \beta_1^t) \, v}, \qquad
    m = \beta_1 m + (1 - \beta_1) g, \quad v = \max(\beta_2 v, |g| + \epsilon)$$

    The same as `torch.optim.Adamax` and `optax.adamax`, except for rounding.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the maximum, in [0, 1).
        eps: >= 0, added to the size of each gradient.

    Returns:
        A transformation with an `AdamaxState`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = adamax(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> optimizer.update(params, optimizer.init(params))[0]
        {'w': tensor([-0.1000,  0.1000])}

    References:
        Kingma, Ba (2015), [Adam: A Method for Stochastic
        Optimization](https://arxiv.org/abs/1412.6980), section 7.1.
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.non_negative("eps", eps)

    def init(params: PyTree) -> AdamaxState:
        return AdamaxState(*started(params, learning_rate), zeros_like(params), zeros_like(params))

    def update(
        grads: PyTree, state: AdamaxState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AdamaxState]:
        count, rate = state.count + 1, rate_at(learning_rate, state.count)
        updates, mu, nu = each_leaf(
            _rule,
            grads,
            params,
            {"mu": state.mu, "nu": state.nu},
            one_b1=1 - b1,
            b2=b2,
            eps=eps,
            step=-rate / debias(b1, count),
        )
        return updates, AdamaxState(count, rate.float(), mu, nu)

    return checked("adamax", AdamaxState, init, update)


def _rule(
    leaf: Leaf,
    one_b1: Hyperparameter,
    b2: Hyperparameter,
    eps: Hyperparameter,
    step: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (m, v) = leaf.grad, leaf.memory
    m = torch.lerp(m, g, one_b1)
    v = torch.maximum(v * b2, g.abs() + eps)
    return m * step / v, m, v
