"""Update directions of RMSprop and Lion, for composition in a chain.

The direction of Adam is in `adam.py`, momentum in `momentum.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, each_leaf
from ftrain.optim._leaves import safe_sqrt, zeros_like
from ftrain.optim.normalize import signs
from ftrain.optim.protocol import GradientTransformation, Hyperparameter, PyTree

__all__ = ["ScaleByLionState", "ScaleByRmsState", "scale_by_lion", "scale_by_rms"]


class ScaleByRmsState(NamedTuple):
    """State of `scale_by_rms`.

    Attributes:
        nu: running mean of the squared gradients, a tree like the parameters; at least float32.
    """

    nu: PyTree


class ScaleByLionState(NamedTuple):
    """State of `scale_by_lion`.

    Attributes:
        mu: running mean of the gradients, a tree like the parameters; at least float32.
    """

    mu: PyTree


def scale_by_rms(
    decay: Hyperparameter = 0.99, eps: Hyperparameter = 1e-8
) -> GradientTransformation:
    r"""Return the update direction of RMSprop.

    $$u = \frac{g}{\sqrt{v} + \epsilon}, \qquad v = \rho v + (1 - \rho) g^2$$

    `eps` is outside the root and the decay $\rho$ is 0.99 as in `torch.optim.RMSprop`;
    `optax.scale_by_rms` has 0.9, and the same `eps` with `eps_in_sqrt=False`. $v$ starts at zero,
    without bias correction.

    Args:
        decay: the decay of the mean of squares, in [0, 1).
        eps: >= 0, in units of the gradient.

    Returns:
        A transformation with a `ScaleByRmsState`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> direction = scale_by_rms(0.75)
        >>> direction.update(params, direction.init(params))[0]
        {'w': tensor([ 2., -2.])}

    References:
        Tieleman, Hinton (2012), "Lecture 6.5: rmsprop".
    """
    _checks.fraction("decay", decay)
    _checks.non_negative("eps", eps)

    def scaled(
        leaf: Leaf,
        decay: Hyperparameter,
        one_decay: Hyperparameter,
        eps: Hyperparameter,
    ) -> tuple[torch.Tensor, ...]:
        (v,) = leaf.memory
        new = torch.addcmul(v * decay, leaf.grad * one_decay, leaf.grad)
        return leaf.grad / (safe_sqrt(new) + eps), new

    def init(params: PyTree) -> ScaleByRmsState:
        return ScaleByRmsState(zeros_like(params))

    def update(
        grads: PyTree, state: ScaleByRmsState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ScaleByRmsState]:
        updates, nu = each_leaf(
            scaled, grads, params, {"nu": state.nu}, decay=decay, one_decay=1 - decay, eps=eps
        )
        return updates, ScaleByRmsState(nu)

    return checked("scale_by_rms", ScaleByRmsState, init, update)


def scale_by_lion(b1: Hyperparameter = 0.9, b2: Hyperparameter = 0.99) -> GradientTransformation:
    r"""Return the update direction of Lion.

    $$u = \mathrm{sign}(\beta_1 m + (1 - \beta_1) g), \qquad
    m = \beta_2 m + (1 - \beta_2) g \text{ (after the step)}$$

    Args:
        b1: the weight of the running mean in the direction, in [0, 1).
        b2: decay of the running mean, in [0, 1).

    Returns:
        A transformation with a `ScaleByLionState`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> params = {"w": torch.tensor([3.0, -0.5])}
        >>> direction = scale_by_lion()
        >>> direction.update(params, direction.init(params))[0]
        {'w': tensor([ 1., -1.])}

    References:
        Chen et al. (2023), [Symbolic Discovery of Optimization
        Algorithms](https://arxiv.org/abs/2302.06675).
    """
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)

    def signed(
        leaf: Leaf,
        one_b1: Hyperparameter,
        one_b2: Hyperparameter,
    ) -> tuple[torch.Tensor, ...]:
        (m,) = leaf.memory
        return signs(torch.lerp(m, leaf.grad, one_b1)), torch.lerp(m, leaf.grad, one_b2)

    def init(params: PyTree) -> ScaleByLionState:
        return ScaleByLionState(zeros_like(params))

    def update(
        grads: PyTree, state: ScaleByLionState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ScaleByLionState]:
        updates, mu = each_leaf(
            signed, grads, params, {"mu": state.mu}, one_b1=1 - b1, one_b2=1 - b2
        )
        return updates, ScaleByLionState(mu)

    return checked("scale_by_lion", ScaleByLionState, init, update)
