"""Rprop: a step size per coordinate, adapted by the signs of gradients alone, for full batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaf_loop import Leaf, each_leaf, started
from ftrain.optim._leaves import zeros_like
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree, Schedule

__all__ = ["RpropState", "rprop"]


class RpropState(NamedTuple):
    """State of `rprop`.

    Attributes:
        count: int64, 0-d. Updates so far.
        step_size: the current step size of each element, a tree like the parameters; at least float32.
        previous: the last gradient, a tree like the parameters; 0 where its sign had changed.
    """

    count: Count
    step_size: PyTree
    previous: PyTree


@algorithm
def rprop(
    learning_rate: Hyperparameter | Schedule = 1e-2,
    eta_minus: Hyperparameter = 0.5,
    eta_plus: Hyperparameter = 1.2,
    *,
    min_step_size: Hyperparameter = 1e-6,
    max_step_size: Hyperparameter = 50.0,
) -> GradientTransformation:
    r"""Return Rprop: resilient backpropagation.

    $$u = -s \, \mathrm{sign}(g)$$

    where $s$ grows by `eta_plus` while the gradient keeps its sign, and shrinks by `eta_minus` when
    the sign changes; that step is skipped, and the next one leaves $s$ unchanged. The same as
    `torch.optim.Rprop`. `optax.rprop` (0.2.8) applies each step one update late, and drops it if the
    sign has changed in the meantime.

    Args:
        learning_rate: the initial step size: a finite number >= 0 or a 0-d tensor. A schedule is not
            accepted, because the step sizes are adapted independently of the update count.
        eta_minus: the factor at a change of sign, in [0, 1).
        eta_plus: the factor otherwise, > 1.
        min_step_size: the least size of a step, >= 0.
        max_step_size: the largest size of a step, > 0.

    Returns:
        A transformation with an `RpropState`.

    Raises:
        ValueError: a hyper-parameter is out of range; gradients and parameters differ in structure or
            shape.
        TypeError: parameters are not floating-point tensors; gradients have another dtype.

    Example:
        >>> optimizer = rprop(0.1)
        >>> params = {"w": torch.tensor([1.0, -2.0])}
        >>> _, state = optimizer.update(params, optimizer.init(params))
        >>> optimizer.update(params, state)[0]
        {'w': tensor([-0.1200,  0.1200])}

    References:
        Riedmiller, Braun (1993), "A direct adaptive method for faster backpropagation learning: the
        RPROP algorithm".
    """
    if not isinstance(learning_rate, torch.Tensor) and callable(learning_rate):
        raise TypeError(
            "learning_rate: expected a number, the initial step size of each coordinate, which then "
            "changes on its own, got a schedule. Write `rprop(1e-2)`."
        )
    _checks.non_negative("learning_rate", learning_rate)
    _checks.fraction("eta_minus", eta_minus)
    _checks.above_one("eta_plus", eta_plus)
    _checks.non_negative("min_step_size", min_step_size)
    _checks.positive("max_step_size", max_step_size)

    def init(params: PyTree) -> RpropState:
        count, _ = started(params, 0.0)
        sizes = tree.map(lambda z: torch.zeros_like(z) + learning_rate, zeros_like(params))
        return RpropState(count, sizes, zeros_like(params))

    def update(
        grads: PyTree, state: RpropState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, RpropState]:
        updates, sizes, previous = each_leaf(
            _rule,
            grads,
            params,
            {"step_size": state.step_size, "previous": state.previous},
            eta_minus=eta_minus,
            eta_plus=eta_plus,
            min_step_size=min_step_size,
            max_step_size=max_step_size,
        )
        return updates, RpropState(state.count + 1, sizes, previous)

    return checked("rprop", RpropState, init, update)


def _rule(
    leaf: Leaf,
    eta_minus: Hyperparameter,
    eta_plus: Hyperparameter,
    min_step_size: Hyperparameter,
    max_step_size: Hyperparameter,
) -> tuple[torch.Tensor, ...]:
    g, (size, previous) = leaf.grad, leaf.memory
    agreement = g * previous
    smaller = torch.where(agreement < 0, size * eta_minus, size)
    size = (
        torch.where(agreement > 0, size * eta_plus, smaller)
        .clamp(min=min_step_size)
        .clamp(max=max_step_size)
    )
    g = torch.where(agreement < 0, 0.0, g)
    return -g.sign() * size, size, g
