"""AdaBelief: Adam with the second moment of gradients about their running mean, not about 0."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, debias, each_leaf, started
from ftrain.optim._leaves import safe_sqrt, zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["AdaBeliefState", "adabelief"]


class AdaBeliefState(NamedTuple):
    """State of `adabelief`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
        nu: running mean of the squared distance between gradient and `mu`; a tree like `mu`.
    """

    count: Count
    learning_rate: torch.Tensor
    mu: PyTree
    nu: PyTree


@algorithm
def adabelief(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-16,
    *,
    eps_root: Hyperparameter = 1e-16,
) -> GradientTransformation:
    r"""Return AdaBelief: Adam whose steps shrink as gradients deviate from their running mean.

    $$u = -\eta \, \frac{m / (1 - \beta_1^t)}{\sqrt{s / (1 - \beta_2^t)} + \epsilon}, \qquad
    m = \beta_1 m + (1 - \beta_1) g, \quad
    s = \beta_2 s + (1 - \beta_2) (g - m)^2 + \epsilon_{root}$$

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean of gradients, in [0, 1). With 0 the mean equals the gradient, and the
            distance is 0.
        b2: decay of the mean of squares, in [0, 1).
        eps: >= 0, added to the square root of the bias-corrected `s`.
        eps_root: >= 0, added to `s` at each update.

    Returns:
        A transformation with an `AdaBeliefState`. It has no decoupled weight decay; for an L2 penalty
        write `chain(add_decayed_weights(...), adabelief(...))`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = adabelief(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> optimizer.update(params, optimizer.init(params))[0]
        {'w': tensor([-0.1111,  0.1111])}

    References:
        Zhuang, Tang, Ding et al. (2020), [AdaBelief Optimizer: Adapting Stepsizes by the Belief in
        Observed Gradients](https://arxiv.org/abs/2010.07468).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.non_negative("eps", eps)
    _checks.non_negative("eps_root", eps_root)

    def init(params: PyTree) -> AdaBeliefState:
        return AdaBeliefState(
            *started(params, learning_rate), zeros_like(params), zeros_like(params)
        )

    def update(
        grads: PyTree, state: AdaBeliefState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AdaBeliefState]:
        count, rate = state.count + 1, rate_at(learning_rate, state.count)
        updates, mu, nu = each_leaf(
            _rule,
            grads,
            params,
            {"mu": state.mu, "nu": state.nu},
            one_b1=1 - b1,
            b2=b2,
            one_b2=1 - b2,
            seen=debias(b2, count),
            eps=eps,
            eps_root=eps_root,
            step=-rate / debias(b1, count),
        )
        return updates, AdaBeliefState(count, rate.float(), mu, nu)

    return checked("adabelief", AdaBeliefState, init, update)


def _rule(
    leaf: Leaf,
    one_b1: Hyperparameter,
    b2: Hyperparameter,
    one_b2: Hyperparameter,
    seen: Hyperparameter,
    eps: Hyperparameter,
    eps_root: Hyperparameter,
    step: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (m, s) = leaf.grad, leaf.memory
    m = torch.lerp(m, g, one_b1)
    error = g - m
    s = torch.addcmul(s * b2, error * one_b2, error) + eps_root
    return m * step / (safe_sqrt(s / seen) + eps), m, s
