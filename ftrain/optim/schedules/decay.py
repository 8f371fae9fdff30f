"""Schedules of a single formula: constant, linear, polynomial, exponential."""

from __future__ import annotations

import torch

from ftrain.optim import _checks
from ftrain.optim._rate import double
from ftrain.optim.protocol import Hyperparameter, Schedule
from ftrain.optim.schedules._numbers import progress, wide

__all__ = ["constant", "exponential", "linear", "polynomial"]


def constant(value: Hyperparameter) -> Schedule:
    """Return a schedule with the same rate at every update.

    Args:
        value: a finite number >= 0 or a 0-d tensor.

    Example:
        >>> constant(0.1)(torch.tensor(7))
        tensor(0.1000, dtype=torch.float64)
    """
    _checks.non_negative("value", value)

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        return double(value, count.device)

    return schedule


def linear(start: Hyperparameter, end: Hyperparameter, steps: int) -> Schedule:
    r"""Return a schedule: a line from `start` to `end` over `steps` updates, then constant.

    $$\mathrm{start} + (\mathrm{end} - \mathrm{start}) \min(t / \mathrm{steps}, 1)$$

    The same as `optax.linear_schedule(start, end, steps)`, and as `LinearLR` of torch, whose
    factors multiply a rate given elsewhere.

    Args:
        start: the rate of the first update; a finite number >= 0 or a 0-d tensor.
        end: the rate at count `steps` and later; a finite number >= 0 or a 0-d tensor.
        steps: the number of updates until `end` is reached, >= 1.

    Example:
        >>> rate = linear(1.0, 0.2, 4)
        >>> [round(rate(torch.tensor(t)).item(), 3) for t in range(6)]
        [1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
    """
    _checks.non_negative("start", start)
    _checks.non_negative("end", end)
    _checks.positive_int("steps", steps)

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        first, last = wide(start, count), wide(end, count)
        return first + (last - first) * progress(count, steps)

    return schedule


def polynomial(
    start: Hyperparameter, end: Hyperparameter, steps: int, power: Hyperparameter = 1.0
) -> Schedule:
    r"""Return a schedule: `start` to `end` in `steps` updates, along a power of the remaining fraction.

    $$\mathrm{end} + (\mathrm{start} - \mathrm{end}) (1 - \min(t / \mathrm{steps}, 1))^{\mathrm{power}}$$

    The same as `optax.polynomial_schedule`, and with `end=0` as `PolynomialLR` of torch.

    Args:
        start: the rate of the first update; a finite number >= 0 or a 0-d tensor.
        end: the rate at count `steps` and later; a finite number >= 0 or a 0-d tensor.
        steps: the number of updates until `end` is reached, >= 1.
        power: > 0. With 1 the curve is a line; above 1 it is steep at first, below 1 at the end.

    Example:
        >>> rate = polynomial(1.0, 0.0, 4, power=2)
        >>> [rate(torch.tensor(t)).item() for t in range(6)]
        [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    _checks.non_negative("start", start)
    _checks.non_negative("end", end)
    _checks.positive_int("steps", steps)
    _checks.positive("power", power)

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        first, last = wide(start, count), wide(end, count)
        left = (1 - progress(count, steps)) ** wide(power, count)
        return last + (first - last) * left

    return schedule


def exponential(
    start: Hyperparameter,
    factor: Hyperparameter,
    steps: int = 1,
    *,
    end: Hyperparameter | None = None,
) -> Schedule:
    r"""Return a schedule: exponential decay from `start`, by `factor` every `steps` updates.

    $$\mathrm{start} \cdot \mathrm{factor}^{t / \mathrm{steps}}$$

    The same as `optax.exponential_decay(start, steps, factor)`, and with `steps=1` as `ExponentialLR` of
    torch. For a decay in jumps use `step`.

    Args:
        start: the rate of the first update; a finite number >= 0 or a 0-d tensor.
        factor: a finite number > 0; above 1 the rate grows (a range test).
        steps: the number of updates over which the factor is spread, >= 1.
        end: the rate at which the decay stops: a lower bound for `factor < 1`, otherwise an upper bound;
            default: no bound.

    Example:
        >>> rate = exponential(1.0, 0.25, 2, end=0.1)
        >>> [rate(torch.tensor(t)).item() for t in range(5)]
        [1.0, 0.5, 0.25, 0.125, 0.1]
    """
    _checks.non_negative("start", start)
    _checks.positive("factor", factor)
    _checks.positive_int("steps", steps)
    if end is not None:
        _checks.non_negative("end", end)

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        base = double(factor, count.device)
        rate = wide(start, count) * base ** (count.to(torch.float64) / steps)
        if end is None:
            return rate
        bound = double(end, count.device)
        return torch.where(base < 1, torch.maximum(rate, bound), torch.minimum(rate, bound))

    return schedule
