"""Schedules that change in jumps: every n updates, or at given updates."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ftrain.optim import _checks
from ftrain.optim._rate import double
from ftrain.optim.protocol import Hyperparameter, Schedule
from ftrain.optim.schedules._numbers import wide

__all__ = ["piecewise_constant", "step"]


def step(start: Hyperparameter, steps: int, factor: Hyperparameter = 0.1) -> Schedule:
    r"""Return a schedule: `start`, multiplied by `factor` once every `steps` updates.

    $$\mathrm{start} \cdot \mathrm{factor}^{\lfloor t / \mathrm{steps} \rfloor}$$

    The same as `StepLR` of torch (`step_size`, `gamma`) and `optax.exponential_decay(...,
    staircase=True)`.

    Args:
        start: the rate of the first `steps` updates; a finite number >= 0 or a 0-d tensor.
        steps: the number of updates from one jump to the next, >= 1.
        factor: a finite number > 0.

    Example:
        >>> rate = step(1.0, 2, factor=0.5)
        >>> [rate(torch.tensor(t)).item() for t in range(6)]
        [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """
    _checks.non_negative("start", start)
    _checks.positive_int("steps", steps)
    _checks.positive("factor", factor)

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        jumps = torch.div(count, steps, rounding_mode="floor").to(torch.float64)
        return wide(start, count) * double(factor, count.device) ** jumps

    return schedule


def piecewise_constant(start: Hyperparameter, factors: Mapping[int, Hyperparameter]) -> Schedule:
    """Return a schedule: `start`, multiplied by `factors[n]` from update `n` on, for each `n`.

    The same as `optax.piecewise_constant_schedule`, and as `MultiStepLR` of torch, in which all factors
    are `gamma`.

    Args:
        start: the rate of the first update; a finite number >= 0 or a 0-d tensor.
        factors: a dict from counts of updates (>= 1) to the factors (>= 0) by which the rate changes
            there.

    Raises:
        TypeError: `factors` is not a mapping from counts to factors.

    Example:
        >>> rate = piecewise_constant(1.0, {2: 0.5, 4: 0.1})
        >>> [rate(torch.tensor(t)).item() for t in range(6)]
        [1.0, 1.0, 0.5, 0.5, 0.05, 0.05]
    """
    _checks.non_negative("start", start)
    if not isinstance(factors, Mapping):
        raise TypeError(
            "factors: expected a dict from numbers of updates to factors, got "
            f"{type(factors).__name__} {factors!r}. "
            "Write `piecewise_constant(0.1, {1000: 0.5, 2000: 0.1})`."
        )
    for boundary, factor in factors.items():
        _checks.positive_int("each key of factors", boundary)
        _checks.non_negative(f"factors[{boundary}]", factor)
    jumps = sorted(factors.items())

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        rate = double(start, count.device)
        for boundary, factor in jumps:
            rate = torch.where(count < boundary, rate, rate * wide(factor, count))
        return rate

    return schedule
