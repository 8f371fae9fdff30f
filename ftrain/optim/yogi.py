"""Yogi: Adam whose second moment changes per step by at most the squared gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, debias, each_leaf, started
from ftrain.optim._leaves import safe_sqrt, zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["YogiState", "yogi"]


class YogiState(NamedTuple):
    """State of `yogi`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
        nu: the second moment of the gradients, which changes additively; a tree like `mu`.
    """

    count: Count
    learning_rate: torch.Tensor
    mu: PyTree
    nu: PyTree


@algorithm
def yogi(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-3,
    *,
    initial_accumulator_value: float = 1e-6,
) -> GradientTransformation:
    r"""Return Yogi: Adam whose second moment changes additively, by at most the squared gradient.

    $$u = -\eta \, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}, \qquad
    m = \beta_1 m + (1 - \beta_1) g, \quad v = v - (1 - \beta_2) \, \mathrm{sign}(v - g^2) \, g^2$$

    `optax.yogi` starts $m$ at 1e-6 too; here it starts at 0.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: >= 0, added to the square root of the bias-corrected `v`.
        initial_accumulator_value: >= 0, the initial value of `v`.

    Returns:
        A transformation with a `YogiState`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = yogi(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> optimizer.update(params, optimizer.init(params))[0]
        {'w': tensor([-0.0999,  0.0999])}

    References:
        Zaheer, Reddi, Sachan, Kale, Kumar (2018), "Adaptive Methods for Nonconvex Optimization".
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.non_negative("eps", eps)
    _checks.non_negative("initial_accumulator_value", initial_accumulator_value)

    def init(params: PyTree) -> YogiState:
        squares = tree.map(lambda z: z + initial_accumulator_value, zeros_like(params))
        return YogiState(*started(params, learning_rate), zeros_like(params), squares)

    def update(
        grads: PyTree, state: YogiState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, YogiState]:
        count, rate = state.count + 1, rate_at(learning_rate, state.count)
        updates, mu, nu = each_leaf(
            _rule,
            grads,
            params,
            {"mu": state.mu, "nu": state.nu},
            one_b1=1 - b1,
            one_b2=1 - b2,
            seen=debias(b2, count),
            eps=eps,
            step=-rate / debias(b1, count),
        )
        return updates, YogiState(count, rate.float(), mu, nu)

    return checked("yogi", YogiState, init, update)


def _rule(
    leaf: Leaf,
    one_b1: Hyperparameter,
    one_b2: Hyperparameter,
    seen: Hyperparameter,
    eps: Hyperparameter,
    step: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (m, v) = leaf.grad, leaf.memory
    m = torch.lerp(m, g, one_b1)
    square = g.square()
    v = v - (v - square).sign() * square * one_b2
    return m * step / (safe_sqrt(v / seen) + eps), m, v
