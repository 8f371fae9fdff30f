"""Stochastic gradient descent, with momentum, Nesterov's look-ahead and weight decay."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaves import first_device, gradients, matching_leaves, parameters, zeros_like
from ftrain.optim._rate import LearningRate, check_learning_rate, double, rate_at, zero_count
from ftrain.optim.masks import Mask, mask_leaves, matrices
from ftrain.optim.momentum import accumulated
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree
from ftrain.optim.scale import scaled
from ftrain.optim.weight_decay import decayed

__all__ = ["SGDState", "sgd"]


class SGDState(NamedTuple):
    """State of `sgd`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
        momentum: the decaying sum of gradients, a tree like the parameters, at least float32; `()`
            without momentum.
    """

    count: Count
    learning_rate: torch.Tensor
    momentum: PyTree


@algorithm
def sgd(
    learning_rate: LearningRate,
    momentum: Hyperparameter = 0.0,
    *,
    nesterov: bool = False,
    dampening: Hyperparameter = 0.0,
    weight_decay: Hyperparameter = 0.0,
    mask: Mask = matrices,
) -> GradientTransformation:
    r"""Return gradient descent, with momentum, Nesterov's look-ahead and weight decay.

    $$u = -\eta d, \qquad d = m = \mu m + (1 - \tau) g$$

    where $d = g$ without momentum, $d = g + \mu m$ with Nesterov's look-ahead, and the dampening
    $\tau$ is 0 at the first update. Weight decay adds $\lambda p$ to $g$ first, where the mask is
    True: an L2 penalty.

    $m$ equals that of `torch.optim.SGD(foreach=False)` to the bit; torch fuses $p - \eta d$ into
    one rounding, so parameters differ by at most 1 ulp a step.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule (first called with 0).
        momentum: in [0, 1). With the number 0, no sum is stored; with a tensor, it always is.
        nesterov: True for Nesterov's look-ahead, which needs momentum and excludes dampening.
        dampening: in [0, 1]. `1 - dampening` is the weight of each gradient in the sum.
        weight_decay: >= 0.
        mask: a tree of bools, a function of the parameters, or None for all. Default: `optim.matrices`,
            no decay on vectors and scalars; `optim.everything` decays all, as torch does.

    Returns:
        A transformation with an `SGDState`. `update` needs `params` for weight decay only.

    Raises:
        ValueError: a hyper-parameter is out of range; the mask's structure is not that of the
            parameters; gradients and parameters differ in structure or shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> from ftrain import optim
        >>> optimizer = sgd(0.1, momentum=0.9)
        >>> params = {"w": torch.tensor([1.0])}
        >>> state = optimizer.init(params)
        >>> for _ in range(2):
        ...     updates, state = optimizer.update({"w": torch.tensor([1.0])}, state, params)
        ...     params = optim.apply_updates(params, updates)
        >>> params, state.momentum
        ({'w': tensor([0.7100])}, {'w': tensor([1.9000])})

    References:
        Sutskever, Martens, Dahl, Hinton (2013), "On the importance of initialization and momentum
        in deep learning".
    """
    check_learning_rate(learning_rate)
    _checks.fraction("momentum", momentum)
    _checks.closed_fraction("dampening", dampening)
    _checks.non_negative("weight_decay", weight_decay)
    remembers = isinstance(momentum, torch.Tensor) or momentum > 0
    dampens = isinstance(dampening, torch.Tensor) or dampening > 0
    decays = isinstance(weight_decay, torch.Tensor) or weight_decay > 0
    if dampens and not remembers:
        raise ValueError(
            "momentum: expected a number > 0 with dampening, which scales the gradients added to the "
            f"momentum, got {momentum}. Write sgd(0.1, 0.9, dampening=0.1)."
        )
    if nesterov and (dampens or not remembers):
        raise ValueError(
            "nesterov=True: expected momentum > 0 and dampening 0, got "
            f"momentum={momentum} and dampening={dampening}. Write sgd(0.1, 0.9, nesterov=True)."
        )

    def init(params: PyTree) -> SGDState:
        leaves, _ = parameters(params)
        if decays:
            mask_leaves(mask, params)
        count = zero_count(first_device(leaves))
        sums = zeros_like(params) if remembers else ()
        return SGDState(count, rate_at(learning_rate, count).float(), sums)

    def update(
        grads: PyTree, state: SGDState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SGDState]:
        rate = rate_at(learning_rate, state.count)
        leaves, treedef = gradients(grads)
        if params is not None:
            (ps, leaves), _ = matching_leaves(("params", params), ("grads", grads))
        if decays:
            leaves = decayed(leaves, ps, weight_decay, mask_leaves(mask, params))
        sums = state.momentum
        if remembers:
            (old, _), _ = matching_leaves(
                ("state.momentum", sums), ("grads", grads), strict_dtype=False
            )
            weight: Hyperparameter = 1.0
            if dampens:
                weight = torch.where(state.count == 0, 1, 1 - double(dampening, rate.device))
            leaves, new = accumulated(leaves, old, momentum, weight, nesterov)
            sums = tree.unflatten(treedef, new)
        return (
            tree.unflatten(treedef, scaled(leaves, -rate)),
            SGDState(state.count + 1, rate.float(), sums),
        )

    return checked(
        "sgd",
        SGDState,
        init,
        update,
        needs_params=decays and "weight_decay",
        unused=() if remembers else ("momentum",),
    )
