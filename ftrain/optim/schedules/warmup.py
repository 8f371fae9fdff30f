"""Schedules that begin with a linear warmup."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from ftrain.optim import _checks
from ftrain.optim.protocol import Hyperparameter, Schedule
from ftrain.optim.schedules._numbers import progress, wide
from ftrain.optim.schedules.cosine import cosine
from ftrain.optim.schedules.decay import constant, linear
from ftrain.optim.schedules.join import join

__all__ = [
    "inverse_sqrt",
    "linear_warmup",
    "warmup_cosine",
    "warmup_linear",
    "warmup_stable_decay",
]

_Shape = Literal["linear", "sqrt"]


def linear_warmup(peak: Hyperparameter, steps: int, start: Hyperparameter = 0.0) -> Schedule:
    r"""Return a schedule: a line from `start` to `peak` over `steps` updates, then constant.

    $$\mathrm{start} + (\mathrm{peak} - \mathrm{start}) \min(t / \mathrm{steps}, 1)$$

    With `start=0`, as in optax and nanoGPT, the first update has rate 0: it changes the moments, but not
    the parameters.

    Args:
        peak: the rate at count `steps` and later; a finite number >= 0 or a 0-d tensor.
        steps: the number of updates until `peak` is reached, >= 1.
        start: the rate of the first update.

    Example:
        >>> warmup = linear_warmup(1.0, 4)
        >>> [warmup(torch.tensor(t)).item() for t in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    _checks.non_negative("peak", peak)
    return linear(start, peak, steps)


def warmup_cosine(
    peak: Hyperparameter, warmup_steps: int, total_steps: int, end: Hyperparameter = 0.0
) -> Schedule:
    """Return a schedule: linear warmup to `peak`, then half a cosine to `end` at `total_steps`.

    The same as `optax.warmup_cosine_decay_schedule(0, peak, warmup_steps, total_steps, end)`.

    Args:
        peak: the rate at count `warmup_steps`; a finite number >= 0 or a 0-d tensor.
        warmup_steps: the number of updates of the warmup, >= 0; included in `total_steps`.
        total_steps: the total number of updates until `end` is reached, more than `warmup_steps`.
        end: the rate at count `total_steps` and later.

    Raises:
        ValueError: `total_steps` is not larger than `warmup_steps`.

    Example:
        >>> rate = warmup_cosine(1.0, 2, 6, end=0.1)
        >>> [round(rate(torch.tensor(t)).item(), 3) for t in range(8)]
        [0.0, 0.5, 1.0, 0.868, 0.55, 0.232, 0.1, 0.1]
    """
    _check_total("warmup_cosine", warmup_steps, total_steps)
    decay = cosine(peak, total_steps - warmup_steps, end)
    return _after_warmup(peak, warmup_steps, [decay], [])


def warmup_linear(
    peak: Hyperparameter, warmup_steps: int, total_steps: int, end: Hyperparameter = 0.0
) -> Schedule:
    """Return a schedule: linear warmup to `peak`, then linear decay to `end` at `total_steps`.

    With `end=0` it is the schedule that `transformers` calls "linear", the default of its `Trainer`.

    Args:
        peak: the rate at count `warmup_steps`; a finite number >= 0 or a 0-d tensor.
        warmup_steps: the number of updates of the warmup, >= 0; `total_steps` includes them.
        total_steps: the number of updates until `end` is reached, more than `warmup_steps`.
        end: the rate at count `total_steps` and later.

    Raises:
        ValueError: `total_steps` leaves no update for the decay.

    Example:
        >>> rate = warmup_linear(1.0, 2, 6)
        >>> [rate(torch.tensor(t)).item() for t in range(8)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    _check_total("warmup_linear", warmup_steps, total_steps)
    _checks.non_negative("peak", peak)
    _checks.non_negative("end", end)
    return _after_warmup(peak, warmup_steps, [linear(peak, end, total_steps - warmup_steps)], [])


def warmup_stable_decay(
    peak: Hyperparameter,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    end: Hyperparameter = 0.0,
    *,
    shape: _Shape = "linear",
) -> Schedule:
    r"""Return a schedule: linear warmup to `peak`, a constant phase, then a decay to `end`.

    The decay is $\mathrm{end} + (\mathrm{peak} - \mathrm{end}) (1 - x)$, or $(1 - \sqrt{x})$ with
    `shape="sqrt"`, where $x$ is the fraction of the decay that is done. Runs of different lengths
    share their beginning: a longer run continues from a state that was saved before the decay.

    Args:
        peak: the highest rate; a finite number >= 0 or a 0-d tensor.
        warmup_steps: the number of updates of the warmup, >= 0.
        stable_steps: the number of updates at `peak`, >= 0.
        decay_steps: the number of updates of the decay, >= 1.
        end: the rate from count `warmup_steps + stable_steps + decay_steps` on.
        shape: the shape of the decay: `"linear"`, or `"sqrt"`, which is steep at first.

    Example:
        >>> rate = warmup_stable_decay(1.0, 2, 3, 4)
        >>> [rate(torch.tensor(t)).item() for t in range(11)]
        [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]

    References:
        Hu et al. (2024), [MiniCPM: Unveiling the Potential of Small Language Models with Scalable
        Training Strategies](https://arxiv.org/abs/2404.06395); Hägele et al. (2024), [Scaling Laws
        and Compute-Optimal Training Beyond Fixed Training
        Durations](https://arxiv.org/abs/2405.18392).
    """
    _checks.positive_int("warmup_steps", warmup_steps, at_least=0)
    _checks.positive_int("stable_steps", stable_steps, at_least=0)
    _checks.positive_int("decay_steps", decay_steps)
    _checks.non_negative("peak", peak)
    _checks.non_negative("end", end)
    if shape not in get_args(_Shape):
        raise ValueError(
            f"shape: expected 'linear' or 'sqrt', got {shape!r}. Write shape='linear'."
        )

    def decay(count: torch.Tensor, /) -> torch.Tensor:
        done = progress(count, decay_steps)
        top, bottom = wide(peak, count), wide(end, count)
        return top + (bottom - top) * (done if shape == "linear" else done.sqrt())

    if stable_steps == 0:
        return _after_warmup(peak, warmup_steps, [decay], [])
    return _after_warmup(peak, warmup_steps, [constant(peak), decay], [stable_steps])


def inverse_sqrt(peak: Hyperparameter, warmup_steps: int, start: Hyperparameter = 0.0) -> Schedule:
    r"""Return a schedule: linear warmup to `peak`, then a decay in proportion to 1 / sqrt(updates).

    $$\mathrm{peak} \sqrt{\mathrm{warmup\_steps} / t}$$

    For the rate of Vaswani et al., pass `peak = (width warmup_steps)^-1/2`; for that of T5, which is
    constant before the decay, `start=peak`.

    Args:
        peak: the rate at count `warmup_steps`; a finite number >= 0 or a 0-d tensor.
        warmup_steps: the number of updates of the warmup, >= 1; also the time scale of the decay.
        start: the rate of the first update.

    Example:
        >>> rate = inverse_sqrt(1.0, 4)
        >>> [rate(torch.tensor(t)).item() for t in (0, 2, 4, 16, 64)]
        [0.0, 0.5, 1.0, 0.5, 0.25]

    References:
        Vaswani et al. (2017), [Attention Is All You Need](https://arxiv.org/abs/1706.03762).
    """
    _checks.non_negative("peak", peak)
    _checks.non_negative("start", start)
    _checks.positive_int("warmup_steps", warmup_steps)

    def decay(count: torch.Tensor, /) -> torch.Tensor:
        return wide(peak, count) * (warmup_steps / (warmup_steps + count.to(torch.float64))).sqrt()

    return join([linear(start, peak, warmup_steps), decay], [warmup_steps])


def _check_total(name: str, warmup_steps: int, total_steps: int) -> None:
    """Raise unless `total_steps` exceeds `warmup_steps`, so that updates remain for the decay."""
    _checks.positive_int("warmup_steps", warmup_steps, at_least=0)
    _checks.positive_int("total_steps", total_steps)
    if total_steps <= warmup_steps:
        raise ValueError(
            f"total_steps counts the warmup too: {total_steps} leaves no update for the decay after "
            f"{warmup_steps} of warmup. Write `{name}(peak, {warmup_steps}, "
            f"{warmup_steps + max(total_steps, 1)})` if you meant {total_steps} updates of decay."
        )


def _after_warmup(
    peak: Hyperparameter, warmup_steps: int, schedules: list[Schedule], boundaries: list[int]
) -> Schedule:
    """Join a linear warmup and `schedules`; the `boundaries` count from the end of the warmup."""
    if warmup_steps == 0:
        return join(schedules, boundaries) if boundaries else schedules[0]
    moved = [warmup_steps + boundary for boundary in boundaries]
    return join([linear(0.0, peak, warmup_steps), *schedules], [warmup_steps, *moved])
