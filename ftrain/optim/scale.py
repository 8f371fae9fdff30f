"""Multiplication by a constant factor, a scheduled factor, or the learning rate."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.optim import _checks
from ftrain.optim._arguments import algorithm
from ftrain.optim._checked import checked
from ftrain.optim._leaves import (
    compute_dtype,
    first_device,
    gradients,
    parameters,
    scalars_by_device,
)
from ftrain.optim._rate import LearningRate, check_learning_rate, rate_at, zero_count
from ftrain.optim.protocol import Count, GradientTransformation, Hyperparameter, PyTree, Schedule

__all__ = [
    "ScaleByLearningRateState",
    "ScaleByScheduleState",
    "scale",
    "scale_by_learning_rate",
    "scale_by_schedule",
    "scaled",
]


class ScaleByLearningRateState(NamedTuple):
    """State of `scale_by_learning_rate`.

    Attributes:
        count: int64, 0-d. Updates so far.
        learning_rate: float32, 0-d. The rate of the last update; initially, that of the first update.
    """

    count: Count
    learning_rate: torch.Tensor


class ScaleByScheduleState(NamedTuple):
    """State of `scale_by_schedule`.

    Attributes:
        count: int64, 0-d. Updates so far.
        factor: float32, 0-d. The factor of the last update; initially, that of the first update.
    """

    count: Count
    factor: torch.Tensor


def scale(factor: Hyperparameter) -> GradientTransformation:
    """Multiply every gradient by one factor: `u = factor g`.

    Args:
        factor: a number (of either sign) or a 0-d tensor.

    Example:
        >>> scale(-0.5).update({"w": torch.tensor([2.0])}, ())[0]
        {'w': tensor([-1.])}
    """
    _checks.finite("factor", factor)

    def init(params: PyTree) -> PyTree:
        return ()

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        return _scaled_tree(grads, factor), state

    return GradientTransformation(init, update)


@algorithm
def scale_by_learning_rate(learning_rate: LearningRate) -> GradientTransformation:
    """Multiply by the negative learning rate: `u = -rate(count) g`.

    The last transformation of an algorithm that is composed from parts. The schedule is first
    called with count 0.

    Args:
        learning_rate: a finite number >= 0, a 0-d tensor, or a schedule.

    Example:
        >>> optimizer = scale_by_learning_rate(0.5)
        >>> params = {"w": torch.tensor([2.0])}
        >>> updates, state = optimizer.update(params, optimizer.init(params))
        >>> updates, state.count, state.learning_rate
        ({'w': tensor([-1.])}, tensor(1), tensor(0.5000))
    """
    check_learning_rate(learning_rate)

    def init(params: PyTree) -> ScaleByLearningRateState:
        leaves, _ = parameters(params)
        count = zero_count(first_device(leaves))
        return ScaleByLearningRateState(count, rate_at(learning_rate, count).float())

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        rate = rate_at(learning_rate, state.count)
        return _scaled_tree(grads, -rate), ScaleByLearningRateState(state.count + 1, rate.float())

    return checked("scale_by_learning_rate", ScaleByLearningRateState, init, update)


def scale_by_schedule(schedule: Schedule) -> GradientTransformation:
    """Multiply every gradient by a factor that follows a schedule: `u = schedule(count) g`.

    The factor may have either sign. For a learning rate, which is negated and reported as
    `learning_rate`, use `scale_by_learning_rate`.

    Args:
        schedule: a function from the count (first 0) to the factor.

    Raises:
        TypeError: `schedule` is a number, for which `scale` exists.

    Example:
        >>> from ftrain import optim
        >>> warmup = scale_by_schedule(optim.linear(0.5, 1.0, 2))
        >>> params = {"w": torch.tensor([2.0])}
        >>> updates, state = warmup.update(params, warmup.init(params))
        >>> updates, state.factor
        ({'w': tensor([1.])}, tensor(0.5000))
    """
    if not callable(schedule) or isinstance(schedule, torch.Tensor):
        raise TypeError(
            f"schedule: expected a function of the count, got {type(schedule).__name__} {schedule!r}. "
            "For a constant factor write `scale(factor)`."
        )

    def init(params: PyTree) -> ScaleByScheduleState:
        leaves, _ = parameters(params)
        count = zero_count(first_device(leaves))
        return ScaleByScheduleState(count, rate_at(schedule, count).float())

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        factor = rate_at(schedule, state.count)
        return _scaled_tree(grads, factor), ScaleByScheduleState(state.count + 1, factor.float())

    return checked("scale_by_schedule", ScaleByScheduleState, init, update)


def scaled(leaves: list[torch.Tensor], factor: Hyperparameter) -> list[torch.Tensor]:
    """Return `factor * leaf` for each leaf, in the dtypes of updates."""
    place = scalars_by_device(factor)
    out = []
    for g in leaves:
        dtype = compute_dtype(g.dtype)
        (factor_here,) = place(g.device, dtype)
        out.append(g.to(dtype) * factor_here)
    return out


def _scaled_tree(grads: PyTree, factor: Hyperparameter) -> PyTree:
    leaves, treedef = gradients(grads)
    return tree.unflatten(treedef, scaled(leaves, factor))
