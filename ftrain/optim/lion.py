"""Lion: steps of equal size in every coordinate, along the sign of an averaged gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, each_leaf, started
from ftrain.optim._leaves import zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.normalize import signs
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree

__all__ = ["LionState", "lion"]


class LionState(NamedTuple):
    """State of `lion`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        mu: running mean of the gradients, a tree like the parameters; at least float32.
    """

    count: Count
    learning_rate: torch.Tensor
    mu: PyTree


@algorithm
def lion(
    learning_rate: LearningRate,
    b1: Hyperparameter = 0.9,
    b2: Hyperparameter = 0.99,
    *,
    weight_decay: Hyperparameter = 1e-3,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return Lion: descent along the sign of a weighted mean of gradient and momentum.

    $$u = -\eta \left( \mathrm{sign}(\beta_1 m + (1 - \beta_1) g) + \lambda p \right), \qquad
    m = \beta_2 m + (1 - \beta_2) g \text{ (after the step)}$$

    Every coordinate moves by the learning rate: use a third to a tenth of AdamW's rate, and three to ten
    times its weight decay.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        b1: weight of the running mean in the direction, in [0, 1).
        b2: decay of the running mean, in [0, 1).
        weight_decay: >= 0, multiplied by the learning rate.
        mask: a tree of bools, a function of the parameters, or None for all. Default: `optim.matrices`,
            no decay on vectors and scalars; `optim.everything` decays all, as optax does.

    Returns:
        A transformation with a `LionState`. `update` needs `params`.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = lion(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> optimizer.update(params, optimizer.init(params), params)[0]
        {'w': tensor([-0.1000,  0.1000])}

    References:
        Chen, Liang, Huang et al. (2023), [Symbolic Discovery of Optimization
        Algorithms](https://arxiv.org/abs/2302.06675).
    """
    check_learning_rate(learning_rate)
    _checks.fraction("b1", b1)
    _checks.fraction("b2", b2)
    _checks.non_negative("weight_decay", weight_decay)

    def init(params: PyTree) -> LionState:
        mask_leaves(mask, params)
        return LionState(*started(params, learning_rate), zeros_like(params))

    def update(
        grads: PyTree, state: LionState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, LionState]:
        rate = rate_at(learning_rate, state.count)
        updates, mu = each_leaf(
            _rule,
            grads,
            params,
            {"mu": state.mu},
            mask=mask_leaves(mask, params),
            shrink=rate * weight_decay,
            one_b1=1 - b1,
            one_b2=1 - b2,
            step=-rate,
        )
        return updates, LionState(state.count + 1, rate.float(), mu)

    return checked("lion", LionState, init, update, needs_params=True)


def _rule(
    leaf: Leaf,
    one_b1: Hyperparameter,
    one_b2: Hyperparameter,
    step: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (m,) = leaf.grad, leaf.memory
    return signs(torch.lerp(m, g, one_b1)) * step, torch.lerp(m, g, one_b2)
