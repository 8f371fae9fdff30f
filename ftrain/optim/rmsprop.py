"""RMSprop: gradients divided by the root of the running mean of their squares."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, each_leaf, started
from ftrain.optim._leaves import safe_sqrt, zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["RMSpropState", "rmsprop"]


class RMSpropState(NamedTuple):
    """State of `rmsprop`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        nu: running mean of the squared gradients, a tree like the parameters; at least float32.
        mu: running mean of the gradients, a tree like `nu`; `()` unless centered.
        momentum: the decaying sum of scaled gradients, a tree like `nu`; `()` without momentum.
    """

    count: Count
    learning_rate: torch.Tensor
    nu: PyTree
    mu: PyTree
    momentum: PyTree


@algorithm
def rmsprop(
    learning_rate: LearningRate,
    alpha: Hyperparameter = 0.99,
    eps: Hyperparameter = 1e-8,
    *,
    momentum: Hyperparameter = 0.0,
    centered: bool = False,
) -> GradientTransformation:
    r"""Return RMSprop: gradients divided by the root of the running mean of their squares.

    $$u = -\eta d, \qquad d = \frac{g}{\sqrt{v} + \epsilon}, \quad v = \alpha v + (1 - \alpha) g^2$$

    Centered, the root is of the variance $v - m^2$ (never less than 0), with $m = \alpha m + (1 -
    \alpha) g$. With momentum $u = -\eta b$ and $b = \mu b + d$.

    The same as `torch.optim.RMSprop`. `optax.rmsprop` names $\alpha$ `decay` (0.9), puts `eps`
    under the root unless `eps_in_sqrt=False`, and multiplies by the rate before it sums momentum:
    under a schedule its past gradients keep their old rates.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        alpha: decay of the means, in [0, 1).
        eps: >= 0, added to the square root.
        momentum: in [0, 1). With the number 0, no sum is stored; with a tensor, it always is.
        centered: True to divide by the standard deviation.

    Returns:
        A transformation with an `RMSpropState`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = rmsprop(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> optimizer.update(params, optimizer.init(params))[0]
        {'w': tensor([-1.0000,  1.0000])}

    References:
        Tieleman, Hinton (2012), "Lecture 6.5: rmsprop"; centered: Graves (2013), [Generating
        Sequences With Recurrent Neural Networks](https://arxiv.org/abs/1308.0850).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("alpha", alpha)
    _checks.non_negative("eps", eps)
    _checks.fraction("momentum", momentum)
    remembers = isinstance(momentum, torch.Tensor) or momentum > 0

    def init(params: PyTree) -> RMSpropState:
        return RMSpropState(
            *started(params, learning_rate),
            zeros_like(params),
            zeros_like(params) if centered else (),
            zeros_like(params) if remembers else (),
        )

    def rule(
        leaf: Leaf,
        alpha: Hyperparameter,
        one_alpha: Hyperparameter,
        eps: Hyperparameter,
        momentum: Hyperparameter,
        step: Hyperparameter,
    ) -> tuple[torch.Tensor, ...]:
        g, (v, *others) = leaf.grad, leaf.memory
        v = torch.addcmul(v * alpha, g * one_alpha, g)
        square, kept = v, [v]
        if centered:
            m = torch.lerp(others.pop(0), g, one_alpha)
            square = torch.addcmul(v, m, m, value=-1).clamp(min=0)
            kept.append(m)
        direction = g / (safe_sqrt(square) + eps)
        if remembers:
            direction = others.pop(0) * momentum + direction
            kept.append(direction)
        return direction * step, *kept

    def update(
        grads: PyTree, state: RMSpropState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, RMSpropState]:
        rate = rate_at(learning_rate, state.count)
        memory = {"nu": state.nu}
        if centered:
            memory["mu"] = state.mu
        if remembers:
            memory["momentum"] = state.momentum
        updates, *trees = each_leaf(
            rule,
            grads,
            params,
            memory,
            alpha=alpha,
            one_alpha=1 - alpha,
            eps=eps,
            momentum=momentum,
            step=-rate,
        )
        new = dict(zip(memory, trees, strict=True))
        return updates, RMSpropState(
            state.count + 1, rate.float(), new["nu"], new.get("mu", ()), new.get("momentum", ())
        )

    kept = {"mu": centered, "momentum": remembers}
    unused = [name for name, used in kept.items() if not used]
    return checked("rmsprop", RMSpropState, init, update, unused=unused)
