"""AMSGrad: Adam whose divisor never shrinks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, debias, each_leaf, started
from ftrain.optim._leaves import safe_sqrt, zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["AMSGradState", "amsgrad"]


class AMSGradState(NamedTuple):
    """State of `amsgrad`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
        nu: running mean of the squared gradients; a tree like `mu`.
        nu_max: the largest `nu` so far, element by element.
    """

    count: Count
    learning_rate: torch.Tensor
    mu: PyTree
    nu: PyTree
    nu_max: PyTree


@algorithm
def amsgrad(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.999,
    eps: Hyperparameter = 1e-8,
    *,
    weight_decay: Hyperparameter = 0.0,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return AMSGrad: Adam whose divisor is the root of the largest second moment so far.

    $$u = -\eta \left( \frac{m / (1 - \beta_1^t)}{\sqrt{w / (1 - \beta_2^t)} + \epsilon} + \lambda p
    \right), \qquad w = \max(w, v)$$

    with the moments of `adam`.

    The same as `amsgrad=True` of `torch.optim.Adam` and `AdamW`. `optax.amsgrad` takes the maximum
    after the correction, over $v / (1 - \beta_2^t)$: the first gradients have more weight there, for the
    whole run.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: decay of the mean of gradients, in [0, 1).
        b2: decay of the mean of squares, in [0, 1).
        eps: >= 0, added outside the root, after the correction.
        weight_decay: >= 0, decoupled: multiplied by the learning rate. For an L2 penalty write
            `chain(add_decayed_weights(...), amsgrad(...))`.
        mask: the parameters that decay: a tree of bools, a function of the parameters, or None for all.

    Returns:
        A transformation with an `AMSGradState`. `update` needs `params` for weight decay only.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = amsgrad(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> optimizer.update(params, optimizer.init(params))[0]
        {'w': tensor([-0.1000,  0.1000])}

    References:
        Reddi, Kale, Kumar (2018), [On the Convergence of Adam and
        Beyond](https://arxiv.org/abs/1904.09237).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.non_negative("eps", eps)
    _checks.non_negative("weight_decay", weight_decay)
    decays = isinstance(weight_decay, torch.Tensor) or weight_decay > 0

    def init(params: PyTree) -> AMSGradState:
        if decays:
            mask_leaves(mask, params)
        moments = (zeros_like(params) for _ in range(3))
        return AMSGradState(*started(params, learning_rate), *moments)

    def update(
        grads: PyTree, state: AMSGradState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AMSGradState]:
        masked = mask_leaves(mask, params) if decays else None
        count, rate = state.count + 1, rate_at(learning_rate, state.count)
        updates, mu, nu, nu_max = each_leaf(
            _rule,
            grads,
            params,
            {"mu": state.mu, "nu": state.nu, "nu_max": state.nu_max},
            one_b1=1 - b1,
            b2=b2,
            one_b2=1 - b2,
            correction=debias(b2, count).sqrt(),
            eps=eps,
            step=-rate / debias(b1, count),
            mask=masked,
            shrink=rate * weight_decay,
        )
        return updates, AMSGradState(count, rate.float(), mu, nu, nu_max)

    return checked("amsgrad", AMSGradState, init, update, needs_params=decays and "weight_decay")


def _rule(
    leaf: Leaf,
    one_b1: Hyperparameter,
    b2: Hyperparameter,
    one_b2: Hyperparameter,
    correction: Hyperparameter,
    eps: Hyperparameter,
    step: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (m, v, largest) = leaf.grad, leaf.memory
    m = torch.lerp(m, g, one_b1)
    v = torch.addcmul(v * b2, g * one_b2, g)
    largest = torch.maximum(largest, v)
    return m * step / (safe_sqrt(largest) / correction + eps), m, v, largest
