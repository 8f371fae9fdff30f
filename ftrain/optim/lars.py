"""LARS: momentum with each layer's step scaled by the norm of its weights, for large batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, each_leaf, started
from ftrain.optim._leaves import zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at
from ftrain.optim._trust_ratio import trust_ratio
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["LARSState", "lars"]


class LARSState(NamedTuple):
    """State of `lars`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        momentum: the decaying sum of steps, rates included, a tree like the parameters; at least
            float32.
    """

    count: Count
    learning_rate: torch.Tensor
    momentum: PyTree


@algorithm
def lars(
    learning_rate: LearningRate,
    momentum: Hyperparameter = 0.9,
    *,
    weight_decay: Hyperparameter = 0.0,
    trust_coefficient: Hyperparameter = 1e-3,
    eps: Hyperparameter = 0.0,
    nesterov: bool = False,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return LARS: momentum with layerwise adaptation.

    $$u = m = \mu m - \eta r d, \qquad d = g + \lambda p, \quad
    r = \frac{\mathrm{trust\_coefficient} \, \lVert p \rVert}{\lVert d \rVert + \epsilon}$$

    and $r = 1$ if a norm is 0. With Nesterov's look-ahead, $u = \mu m - \eta r d$ with the new $m$.
    Where the mask is False, $d = g$ and $r = 1$, which is plain momentum.

    As in the paper and in optax, and unlike `sgd`, the learning rate is inside the sum: earlier steps
    keep the rates that they had.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        momentum: in [0, 1).
        weight_decay: >= 0, multiplied by the learning rate and the ratio.
        trust_coefficient: > 0, the norm of a layer's step at learning rate 1, relative to the norm of
            its weights.
        eps: >= 0, added to the norm of `d`.
        nesterov: True for Nesterov's look-ahead.
        mask: a tree of bools, a function of the parameters, or None for all: the parameters to adapt and
            decay. Default: `optim.matrices`, which excludes vectors and scalars; `optim.everything`
            adapts all, as optax does.

    Returns:
        A transformation with a `LARSState`. `update` needs `params`.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = lars(1.0, trust_coefficient=0.1)
        >>> params = {"w": torch.tensor([[3.0, -4.0]])}
        >>> optimizer.update({"w": torch.tensor([[0.0, 2.0]])}, optimizer.init(params), params)[0]
        {'w': tensor([[ 0.0000, -0.5000]])}

    References:
        You, Gitman, Ginsburg (2017), [Large Batch Training of Convolutional
        Networks](https://arxiv.org/abs/1708.03888).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("momentum", momentum)
    _checks.non_negative("weight_decay", weight_decay)
    _checks.positive("trust_coefficient", trust_coefficient)
    _checks.non_negative("eps", eps)

    def init(params: PyTree) -> LARSState:
        mask_leaves(mask, params)
        return LARSState(*started(params, learning_rate), zeros_like(params))

    def rule(
        leaf: Leaf,
        momentum: Hyperparameter,
        weight_decay: Hyperparameter,
        trust_coefficient: Hyperparameter,
        eps: Hyperparameter,
        step: Hyperparameter,
    ) -> tuple[torch.Tensor, ...]:
        d, (m,) = leaf.grad, leaf.memory
        p = leaf.param.to(d.dtype)
        ratio: Hyperparameter = 1.0
        if leaf.masked:
            d = d + p * weight_decay
            ratio = trust_ratio(p, d, trust_coefficient, eps)
        scaled = d * (ratio * step)
        m = m * momentum + scaled
        # Without a copy, the update and the new sum would be outputs that share memory.
        return (m * momentum + scaled if nesterov else m.clone()), m

    def update(
        grads: PyTree, state: LARSState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, LARSState]:
        rate = rate_at(learning_rate, state.count)
        updates, sums = each_leaf(
            rule,
            grads,
            params,
            {"momentum": state.momentum},
            mask=mask_leaves(mask, params),
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            eps=eps,
            step=-rate,
        )
        return updates, LARSState(state.count + 1, rate.float(), sums)

    return checked("lars", LARSState, init, update, needs_params=True)
