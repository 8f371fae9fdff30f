"""Adadelta: gradients rescaled by running means of squared updates and of squared gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, each_leaf, started
from ftrain.optim._leaves import zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["AdadeltaState", "adadelta"]


class AdadeltaState(NamedTuple):
    """State of `adadelta`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        nu: running mean of the squared gradients, a tree like the parameters; at least float32.
        delta: running mean of the squared steps (before the rate), likewise.
    """

    count: Count
    learning_rate: torch.Tensor
    nu: PyTree
    delta: PyTree


@algorithm
def adadelta(
    learning_rate: LearningRate = 1.0, rho: Hyperparameter = 0.9, eps: Hyperparameter = 1e-6
) -> GradientTransformation:
    r"""Return Adadelta: steps scaled by the RMS of earlier steps over the RMS of the gradients.

    $$u = -\eta d, \qquad d = \frac{\sqrt{x + \epsilon}}{\sqrt{v + \epsilon}} \, g, \quad
    v = \rho v + (1 - \rho) g^2, \quad x = \rho x + (1 - \rho) d^2 \text{ (after the step)}$$

    The same as `torch.optim.Adadelta` and `optax.adadelta`, except for rounding.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        rho: decay of both means, in [0, 1).
        eps: >= 0, added under the square roots. With 0, all updates are 0.

    Returns:
        A transformation with an `AdadeltaState`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = adadelta(eps=0.01)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> optimizer.update(params, optimizer.init(params))[0]
        {'w': tensor([-0.3015,  0.3123])}

    References:
        Zeiler (2012), [ADADELTA: An Adaptive Learning Rate
        Method](https://arxiv.org/abs/1212.5701).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("rho", rho)
    _checks.non_negative("eps", eps)

    def init(params: PyTree) -> AdadeltaState:
        return AdadeltaState(
            *started(params, learning_rate), zeros_like(params), zeros_like(params)
        )

    def update(
        grads: PyTree, state: AdadeltaState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AdadeltaState]:
        rate = rate_at(learning_rate, state.count)
        updates, nu, delta = each_leaf(
            _rule,
            grads,
            params,
            {"nu": state.nu, "delta": state.delta},
            rho=rho,
            one_rho=1 - rho,
            eps=eps,
            step=-rate,
        )
        return updates, AdadeltaState(state.count + 1, rate.float(), nu, delta)

    return checked("adadelta", AdadeltaState, init, update)


def _rule(
    leaf: Leaf,
    rho: Hyperparameter,
    one_rho: Hyperparameter,
    eps: Hyperparameter,
    step: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (v, x) = leaf.grad, leaf.memory
    v = torch.addcmul(v * rho, g * one_rho, g)
    d = (x + eps).sqrt() / (v + eps).sqrt() * g
    x = torch.addcmul(x * rho, d * one_rho, d)
    return d * step, v, x
