"""Learning rates as pure functions of the number of updates done so far.

A schedule takes the count (int64, 0-d) and returns a 0-d tensor on its device, in float64: what
`torch.optim.lr_scheduler` computes in Python floats. One's own is any such function:

>>> def inverse_root(count):
...     return 0.1 / (1.0 + count.double()).sqrt()
>>> inverse_root(torch.tensor(3))
tensor(0.0500, dtype=torch.float64)
"""

from __future__ import annotations

import math

import torch

from ftrain.optim import _checks
from ftrain.optim._rate import double
from ftrain.optim.protocol import Hyperparameter, Schedule

__all__ = ["constant", "cosine", "linear_warmup", "warmup_cosine"]


def constant(value: Hyperparameter) -> Schedule:
    """The same rate at every count.

    Args:
        value: a finite number >= 0 or a 0-d tensor.

    >>> constant(0.1)(torch.tensor(7))
    tensor(0.1000, dtype=torch.float64)
    """
    _checks.non_negative("value", value)

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        return double(value, count.device)

    return schedule


def linear_warmup(peak: Hyperparameter, steps: int, start: Hyperparameter = 0.0) -> Schedule:
    """A straight line from `start` at count 0 to `peak` at count `steps`, then flat.

    `start + (peak - start) min(t / steps, 1)`. With `start=0` the first update has rate 0: it moves
    moments, not parameters (as in optax and nanoGPT).

    Args:
        peak: the rate reached; a finite number >= 0 or a 0-d tensor.
        steps: updates until it is reached, >= 1.
        start: the rate of the first update.

    >>> warmup = linear_warmup(1.0, 4)
    >>> [warmup(torch.tensor(t)).item() for t in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    _checks.non_negative("peak", peak)
    _checks.non_negative("start", start)
    _checks.positive_int("steps", steps)

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        done = count.to(torch.float64).clamp(0, steps) / steps
        return start + (peak - start) * done

    return schedule


def cosine(peak: Hyperparameter, steps: int, end: Hyperparameter = 0.0) -> Schedule:
    """Half a cosine from `peak` at count 0 down to `end` at count `steps`, then flat.

    `end + (peak - end) (1 + cos(pi min(t / steps, 1))) / 2`: `CosineAnnealingLR` of torch up to
    `T_max`, where that turns back up and this stays.

    Args:
        peak: the first rate; a finite number >= 0 or a 0-d tensor.
        steps: updates until `end` is reached, >= 1.
        end: the rate from there on.

    Source: Loshchilov, Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts".

    >>> decay = cosine(1.0, 4)
    >>> [round(decay(torch.tensor(t)).item(), 3) for t in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    _checks.non_negative("peak", peak)
    _checks.non_negative("end", end)
    _checks.positive_int("steps", steps)

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        done = count.to(torch.float64).clamp(0, steps) / steps
        return end + (peak - end) * (1 + torch.cos(math.pi * done)) / 2

    return schedule


def warmup_cosine(
    peak: Hyperparameter, warmup_steps: int, total_steps: int, end: Hyperparameter = 0.0
) -> Schedule:
    """A linear warmup from 0 to `peak`, then half a cosine down to `end` at count `total_steps`.

    Args:
        peak: the rate at count `warmup_steps`; a finite number >= 0 or a 0-d tensor.
        warmup_steps: updates of the warmup, >= 0. They are part of `total_steps`.
        total_steps: updates until `end` is reached, more than `warmup_steps`.
        end: the rate from there on.

    Raises:
        ValueError: nothing is left for the decay.

    >>> rate = warmup_cosine(1.0, 2, 6, end=0.1)
    >>> [round(rate(torch.tensor(t)).item(), 3) for t in range(8)]
    [0.0, 0.5, 1.0, 0.868, 0.55, 0.232, 0.1, 0.1]
    """
    _checks.positive_int("warmup_steps", warmup_steps, at_least=0)
    _checks.positive_int("total_steps", total_steps)
    if total_steps <= warmup_steps:
        raise ValueError(
            f"total_steps counts the warmup too: {total_steps} leaves nothing to decay over after "
            f"{warmup_steps} of warmup. Write `warmup_cosine(peak, {warmup_steps}, "
            f"{warmup_steps + max(total_steps, 1)})` if you meant {total_steps} updates of decay."
        )
    decay = cosine(peak, total_steps - warmup_steps, end)
    if warmup_steps == 0:
        return decay
    warmup = linear_warmup(peak, warmup_steps)

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        return torch.where(count < warmup_steps, warmup(count), decay(count - warmup_steps))

    return schedule
