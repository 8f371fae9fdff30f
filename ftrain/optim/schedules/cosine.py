"""Schedules made of half cosines: one decay, decays with restarts, or a rise and a decay."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from ftrain.optim import _checks
from ftrain.optim.protocol import Hyperparameter, Schedule
from ftrain.optim.schedules._numbers import progress, wide

__all__ = ["cosine", "cosine_restarts", "one_cycle"]

_Anneal = Literal["cos", "linear"]


def cosine(peak: Hyperparameter, steps: int, end: Hyperparameter = 0.0) -> Schedule:
    r"""Return a schedule: half a cosine from `peak` to `end` over `steps` updates, then constant.

    $$\mathrm{end} + (\mathrm{peak} - \mathrm{end}) \, \frac{1 + \cos(\pi x)}{2}, \qquad
    x = \min(t / \mathrm{steps}, 1)$$

    The same as `optax.cosine_decay_schedule`, and as `CosineAnnealingLR` of torch up to `T_max`: from
    there on, torch's rate rises again, and this one stays constant.

    Args:
        peak: the first rate; a finite number >= 0 or a 0-d tensor.
        steps: the number of updates until `end` is reached, >= 1.
        end: the rate at count `steps` and later.

    Example:
        >>> decay = cosine(1.0, 4)
        >>> [round(decay(torch.tensor(t)).item(), 3) for t in range(6)]
        [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    References:
        Loshchilov, Hutter (2017), [SGDR: Stochastic Gradient Descent with Warm
        Restarts](https://arxiv.org/abs/1608.03983).
    """
    _checks.non_negative("peak", peak)
    _checks.non_negative("end", end)
    _checks.positive_int("steps", steps)

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        return _annealed(wide(peak, count), wide(end, count), progress(count, steps), "cos")

    return schedule


def cosine_restarts(
    peak: Hyperparameter, steps: int, end: Hyperparameter = 0.0, *, factor: int = 1
) -> Schedule:
    """Return a schedule: half cosines from `peak` to `end`, each `factor` times as long as the last.

    The same as `CosineAnnealingWarmRestarts` of torch (`T_0`, `eta_min`, `T_mult`). For cycles of
    different heights, `join` several `cosine`s, as `optax.sgdr_schedule` does.

    Args:
        peak: the first rate of every cycle; a finite number >= 0 or a 0-d tensor.
        steps: the number of updates of the first cycle, >= 1.
        end: the rate that a cycle would reach one update after its last.
        factor: the length of each cycle, divided by that of the previous cycle; an int >= 1.

    Example:
        >>> rate = cosine_restarts(1.0, 2, factor=2)
        >>> [round(rate(torch.tensor(t)).item(), 3) for t in range(7)]
        [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]

    References:
        Loshchilov, Hutter (2017), [SGDR: Stochastic Gradient Descent with Warm
        Restarts](https://arxiv.org/abs/1608.03983).
    """
    _checks.non_negative("peak", peak)
    _checks.non_negative("end", end)
    _checks.positive_int("steps", steps)
    _checks.positive_int("factor", factor)
    # The number of cycles that a 62-bit count can reach: 61 if each doubles, 2 if each is a billion
    # times as long.
    cycles = 1 if factor == 1 else max(1, int((62 - math.log2(steps)) / math.log2(factor)))

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        if factor == 1:
            since = torch.remainder(count, steps).to(torch.float64)
            length: torch.Tensor | int = steps
        else:
            # Integer arithmetic only: with a logarithm, rounding could put a count into the wrong cycle.
            lengths = steps * factor ** torch.arange(cycles, device=count.device)
            starts = torch.div(lengths - steps, factor - 1, rounding_mode="floor")
            begun = count >= starts
            since = (count - (starts * begun).amax()).to(torch.float64)
            length = (lengths * begun).amax()
        return _annealed(wide(peak, count), wide(end, count), since / length, "cos")

    return schedule


def one_cycle(
    peak: Hyperparameter,
    steps: int,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal_strategy: _Anneal = "cos",
) -> Schedule:
    """Return a schedule: a rise to `peak`, then a decay to far below the first rate.

    From `peak / div_factor` at count 0 to `peak` at count `pct_start steps - 1`, then to
    `peak / (div_factor final_div_factor)` at count `steps - 1`, then flat: the rates of `OneCycleLR`
    of torch, which raises an error after its end and changes the momentum too. If `pct_start steps < 1`,
    the peak is before count 0, as in torch, and no update has the peak rate. (If the product is exactly
    1, count 0 has the peak rate, and torch divides by zero.) `optax.cosine_onecycle_schedule` has the
    same rates, but reaches both the peak and the end one update later.

    Args:
        peak: the highest rate; a finite number >= 0 or a 0-d tensor.
        steps: the number of updates of the whole cycle, >= 2.
        pct_start: the fraction of the updates in which the rate rises, in [0, 1).
        div_factor: the peak divided by the first rate, > 0.
        final_div_factor: the first rate divided by the last rate, > 0.
        anneal_strategy: `"cos"`, half a cosine each way; `"linear"`, straight lines.

    Example:
        >>> rate = one_cycle(1.0, 10, pct_start=0.5, div_factor=4.0, anneal_strategy="linear")
        >>> [round(rate(torch.tensor(t)).item(), 3) for t in (0, 2, 4, 7, 9, 20)]
        [0.25, 0.625, 1.0, 0.4, 0.0, 0.0]

    References:
        Smith, Topin (2018), [Super-Convergence: Very Fast Training of Neural Networks Using Large
        Learning Rates](https://arxiv.org/abs/1708.07120).
    """
    _checks.non_negative("peak", peak)
    _checks.positive_int("steps", steps, at_least=2)
    _checks.fraction("pct_start", pct_start)
    _checks.positive("div_factor", div_factor)
    _checks.positive("final_div_factor", final_div_factor)
    if anneal_strategy not in get_args(_Anneal):
        raise ValueError(
            f"anneal_strategy: expected 'cos' or 'linear', got {anneal_strategy!r}. Write "
            "anneal_strategy='cos'."
        )
    rise = pct_start * steps - 1  # below 0 in a short cycle

    def schedule(count: torch.Tensor, /) -> torch.Tensor:
        top = wide(peak, count)
        low, last = top / div_factor, top / (div_factor * final_div_factor)
        t = count.to(torch.float64)
        fallen = ((t - rise) / (steps - 1 - rise)).clamp(0, 1)  # the length is > 0: pct_start < 1
        rate = _annealed(top, last, fallen, anneal_strategy)
        if rise <= 0:
            return rate
        risen = (t / rise).clamp(0, 1)
        return torch.where(t <= rise, _annealed(low, top, risen, anneal_strategy), rate)

    return schedule


def _annealed(
    start: Hyperparameter, end: Hyperparameter, done: torch.Tensor, anneal: _Anneal
) -> torch.Tensor:
    if anneal == "linear":
        return start + (end - start) * done
    return end + (start - end) * (1 + torch.cos(math.pi * done)) / 2
