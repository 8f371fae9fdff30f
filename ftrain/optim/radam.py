"""RAdam: Adam whose adaptive rate starts once its variance can be estimated."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, debias, each_leaf, started
from ftrain.optim._leaves import safe_sqrt, zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, double, rate_at
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["RAdamState", "radam"]


class RAdamState(NamedTuple):
    """State of `radam`.

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
def radam(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    *,
    weight_decay: Hyperparameter = 0.0,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return RAdam: Adam with a rectified variance.

    $$u = -\eta \left( \frac{s \, m}{1 - \beta_1^t} + \lambda p \right), \qquad
    s = r \, \frac{\sqrt{1 - \beta_2^t}}{\sqrt{v} + \epsilon} \text{ if } n > 5, \text{ else } 1$$

    with the moments of `adam`, where $n = n_\infty - 2 t \beta_2^t / (1 - \beta_2^t)$ is the number
    of gradients that $v$ averages over, $n_\infty = 2 / (1 - \beta_2) - 1$, and

    $$r = \sqrt{\frac{(n - 4) (n - 2) \, n_\infty}{(n_\infty - 4) (n_\infty - 2) \, n}}$$

    The same as `torch.optim.RAdam`. `optax.radam` corrects $v$ before it adds `eps`: they differ
    where a gradient is of the size of `eps`.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1). Up to 2/3 the step is never adaptive.
        eps: >= 0, added to the square root of `v` before the bias correction.
        weight_decay: >= 0, decoupled: multiplied by the learning rate. For the L2 penalty of torch write
            `chain(add_decayed_weights(...), radam(...))`.
        mask: the parameters that decay: a tree of bools, a function of the parameters, or None for all.

    Returns:
        A transformation with an `RAdamState`. `update` needs `params` for weight decay only.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = radam(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> optimizer.update(params, optimizer.init(params))[0]
        {'w': tensor([-0.1000,  0.2000])}

    References:
        Liu, Jiang, He, Chen, Liu, Gao, Han (2020), [On the Variance of the Adaptive Learning Rate
        and Beyond](https://arxiv.org/abs/1908.03265).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.non_negative("eps", eps)
    _checks.non_negative("weight_decay", weight_decay)
    decays = isinstance(weight_decay, torch.Tensor) or weight_decay > 0

    def init(params: PyTree) -> RAdamState:
        count, rate = started(params, learning_rate)
        if decays:
            mask_leaves(mask, params)
        return RAdamState(count, rate, zeros_like(params), zeros_like(params))

    def update(
        grads: PyTree, state: RAdamState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, RAdamState]:
        masked = mask_leaves(mask, params) if decays else None
        count, rate = state.count + 1, rate_at(learning_rate, state.count)
        adaptive, rectifier = _rectifier(b2, count)
        updates, mu, nu = each_leaf(
            _rule,
            grads,
            params,
            {"mu": state.mu, "nu": state.nu},
            mask=masked,
            shrink=rate * weight_decay,
            one_b1=1 - b1,
            b2=b2,
            one_b2=1 - b2,
            eps=eps,
            step=-rate / debias(b1, count),
            adaptive=adaptive,
            rectifier=rectifier,
        )
        return updates, RAdamState(count, rate.float(), mu, nu)

    return checked("radam", RAdamState, init, update, needs_params=decays and "weight_decay")


def _rectifier(b2: Hyperparameter, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 1 if the step is adaptive, else 0; and the factor of an adaptive step, always finite.

    The factor is the rectification with the bias correction of the second moment, `r sqrt(1 - b2^t)`.
    """
    decay, t = double(b2, count.device), count.to(torch.float64)
    seen = debias(b2, count)
    longest = 2 / (1 - decay) - 1
    length = longest - 2 * t * decay**t / seen
    adaptive = length > 5
    n, most = torch.where(adaptive, length, 6.0), torch.where(adaptive, longest, 6.0)
    squared = (n - 4) * (n - 2) * most / ((most - 4) * (most - 2) * n)
    return adaptive.to(torch.float64), (squared * seen).sqrt()


def _rule(
    leaf: Leaf,
    one_b1: Hyperparameter,
    b2: Hyperparameter,
    one_b2: Hyperparameter,
    eps: Hyperparameter,
    step: Hyperparameter,
    adaptive: Hyperparameter,
    rectifier: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (m, v) = leaf.grad, leaf.memory
    m = torch.lerp(m, g, one_b1)
    v = torch.addcmul(v * b2, g * one_b2, g)
    scale = torch.where(torch.as_tensor(adaptive > 0), rectifier / (safe_sqrt(v) + eps), 1.0)
    return m * step * scale, m, v
