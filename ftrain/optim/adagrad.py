"""Adagrad: gradients divided by the root of the sum of squared gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, each_leaf, started
from ftrain.optim._leaves import safe_sqrt, zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["AdagradState", "adagrad"]


class AdagradState(NamedTuple):
    """State of `adagrad`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        nu: sum of the squared gradients, a tree like the parameters; at least float32.
    """

    count: Count
    learning_rate: torch.Tensor
    nu: PyTree


@algorithm
def adagrad(
    learning_rate: LearningRate,
    eps: Hyperparameter = 1e-10,
    *,
    initial_accumulator_value: float = 0.0,
) -> GradientTransformation:
    r"""Return Adagrad: gradient descent with a separate learning rate for each coordinate.

    $$u = -\eta \, \frac{g}{\sqrt{v} + \epsilon}, \qquad v = v + g^2$$

    The same as `torch.optim.Adagrad`; its `lr_decay` is the schedule `lambda count: rate / (1 +
    lr_decay * count.double())`. `optax.adagrad` puts `eps` under the root and starts the sum at
    0.1.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        eps: >= 0, added to the square root.
        initial_accumulator_value: >= 0, the initial value of the sum.

    Returns:
        A transformation with an `AdagradState`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = adagrad(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> optimizer.update(params, optimizer.init(params))[0]
        {'w': tensor([-0.1000,  0.1000])}

    References:
        Duchi, Hazan, Singer (2011), "Adaptive Subgradient Methods for Online Learning and
        Stochastic Optimization".
    """
    check_learning_rate(learning_rate)
    _checks.non_negative("eps", eps)
    _checks.non_negative("initial_accumulator_value", initial_accumulator_value)

    def init(params: PyTree) -> AdagradState:
        sums = tree.map(lambda z: z + initial_accumulator_value, zeros_like(params))
        return AdagradState(*started(params, learning_rate), sums)

    def update(
        grads: PyTree, state: AdagradState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AdagradState]:
        rate = rate_at(learning_rate, state.count)
        updates, nu = each_leaf(_rule, grads, params, {"nu": state.nu}, eps=eps, step=-rate)
        return updates, AdagradState(state.count + 1, rate.float(), nu)

    return checked("adagrad", AdagradState, init, update)


def _rule(
    leaf: Leaf,
    eps: Hyperparameter,
    step: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (v,) = leaf.grad, leaf.memory
    v = torch.addcmul(v, g, g)
    return g * step / (safe_sqrt(v) + eps), v
