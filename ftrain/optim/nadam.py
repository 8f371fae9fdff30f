"""NAdam: Adam that looks ahead along its momentum, as Nesterov's method does."""

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

__all__ = ["NAdamState", "nadam"]


class NAdamState(NamedTuple):
    """State of `nadam`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        mu_product: float64, 0-d. The product of the momenta of all updates so far.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
        nu: running mean of the squared gradients; a tree like `mu`.
    """

    count: Count
    learning_rate: torch.Tensor
    mu_product: torch.Tensor
    mu: PyTree
    nu: PyTree


@algorithm
def nadam(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    *,
    momentum_decay: Hyperparameter | None = 4e-3,
    weight_decay: Hyperparameter = 0.0,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return NAdam: Adam with Nesterov's momentum.

    $$u = -\eta \left( \frac{d}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda p \right), \qquad
    d = \frac{a_{t+1} m}{1 - \prod_{i \le t+1} a_i} + \frac{(1 - a_t) g}{1 - \prod_{i \le t} a_i}$$

    with the moments of `adam` and $a_t = \beta_1 (1 - 0.96^{t \psi} / 2)$, where $\psi$ is
    `momentum_decay`.

    The same as `torch.optim.NAdam`. `optax.nadam` keeps the momentum constant, $a_t = \beta_1$:
    pass `momentum_decay=None` for it.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean, and the value to which the momentum rises, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: >= 0, added to the square root of the bias-corrected `v`.
        momentum_decay: >= 0, how fast the momentum rises from `b1 / 2`; None for constant `b1`.
        weight_decay: >= 0, decoupled: multiplied by the learning rate. For the L2 penalty of torch write
            `chain(add_decayed_weights(...), nadam(...))`.
        mask: the parameters that decay: a tree of bools, a function of the parameters, or None for all.

    Returns:
        A transformation with an `NAdamState`. `update` needs `params` for weight decay only.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = nadam(0.1, momentum_decay=None)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> optimizer.update(params, optimizer.init(params))[0]
        {'w': tensor([-0.1474,  0.1474])}

    References:
        Dozat (2016), "Incorporating Nesterov Momentum into Adam".
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.non_negative("eps", eps)
    _checks.non_negative("weight_decay", weight_decay)
    if momentum_decay is not None:
        _checks.non_negative("momentum_decay", momentum_decay)
    decays = isinstance(weight_decay, torch.Tensor) or weight_decay > 0

    def momentum(t: torch.Tensor) -> torch.Tensor:
        full = double(b1, t.device)
        if momentum_decay is None:
            return full
        return full * (1 - 0.5 * 0.96 ** (t * double(momentum_decay, t.device)))

    def init(params: PyTree) -> NAdamState:
        count, rate = started(params, learning_rate)
        if decays:
            mask_leaves(mask, params)
        return NAdamState(
            count, rate, double(1.0, count.device), zeros_like(params), zeros_like(params)
        )

    def update(
        grads: PyTree, state: NAdamState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, NAdamState]:
        masked = mask_leaves(mask, params) if decays else None
        count, rate = state.count + 1, rate_at(learning_rate, state.count)
        t = count.to(torch.float64)
        now, ahead = momentum(t), momentum(t + 1)
        product = state.mu_product * now
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
            seen=debias(b2, count),
            eps=eps,
            of_gradient=-rate * (1 - now) / (1 - product),
            of_mean=-rate * ahead / (1 - product * ahead),
        )
        return updates, NAdamState(count, rate.float(), product, mu, nu)

    return checked("nadam", NAdamState, init, update, needs_params=decays and "weight_decay")


def _rule(
    leaf: Leaf,
    one_b1: Hyperparameter,
    b2: Hyperparameter,
    one_b2: Hyperparameter,
    seen: Hyperparameter,
    eps: Hyperparameter,
    of_gradient: Hyperparameter,
    of_mean: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (m, v) = leaf.grad, leaf.memory
    m = torch.lerp(m, g, one_b1)
    v = torch.addcmul(v * b2, g * one_b2, g)
    return (g * of_gradient + m * of_mean) / (safe_sqrt(v / seen) + eps), m, v
