"""ASGD: gradient descent that also keeps the average of the parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, each_leaf, started
from ftrain.optim._leaves import zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, double, rate_at
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["ASGDState", "asgd"]


class ASGDState(NamedTuple):
    """State of `asgd`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        average: the mean of the parameters since update `t0`, and before it the current parameters; a
            tree like the parameters, at least float32. Evaluate the model with it.
    """

    count: Count
    learning_rate: torch.Tensor
    average: PyTree


@algorithm
def asgd(
    learning_rate: LearningRate,
    lambd: Hyperparameter = 1e-4,
    alpha: Hyperparameter = 0.75,
    *,
    t0: float = 1e6,
) -> GradientTransformation:
    r"""Return averaged stochastic gradient descent.

    $$u = -\eta_n (g + \lambda p), \quad \eta_n = \frac{\eta}{(1 + \lambda \eta n)^\alpha}, \qquad
    a = a + \frac{p - a}{\max(1, n - t_0)} \text{ (after the step)}$$

    where $n$ is the number of updates before this one. The same as `torch.optim.ASGD`, except for
    rounding.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        lambd: >= 0, how fast the step shrinks, and an L2 penalty on all parameters.
        alpha: >= 0, the exponent with which the step shrinks.
        t0: >= 0, the number of updates after which the average starts.

    Returns:
        A transformation with an `ASGDState`. `update` needs `params`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = asgd(0.1, t0=1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> updates, state.average
        ({'w': tensor([-0.1000,  0.2000])}, {'w': tensor([ 0.9000, -1.8000])})

    References:
        Polyak, Juditsky (1992), "Acceleration of stochastic approximation by averaging".
    """
    check_learning_rate(learning_rate)
    _checks.non_negative("lambd", lambd)
    _checks.non_negative("alpha", alpha)
    _checks.non_negative("t0", t0)

    def init(params: PyTree) -> ASGDState:
        return ASGDState(*started(params, learning_rate), zeros_like(params))

    def update(
        grads: PyTree, state: ASGDState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ASGDState]:
        rate = rate_at(learning_rate, state.count)
        done, shrink = state.count.to(torch.float64), double(lambd, rate.device)
        eta = rate / (1 + shrink * rate * done) ** double(alpha, rate.device)
        weight = 1 / (done - t0).clamp(min=1)
        updates, average = each_leaf(
            _rule,
            grads,
            params,
            {"average": state.average},
            step=-eta,
            pull=-eta * shrink,
            weight=weight,
        )
        return updates, ASGDState(state.count + 1, rate.float(), average)

    return checked("asgd", ASGDState, init, update, needs_params=True)


def _rule(
    leaf: Leaf,
    step: Hyperparameter,
    pull: Hyperparameter,
    weight: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (average,) = leaf.grad, leaf.memory
    p = leaf.param.to(g.dtype)
    u = p * pull + g * step
    return u, torch.lerp(average, p + u, weight)
