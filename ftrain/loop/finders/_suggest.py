"""Suggestion of a learning rate from the losses at increasing rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["SMOOTH", "capped", "smooth", "stops_at", "suggest"]

#: Width of the smoothing kernel, as a fraction of the sweep. It is symmetric, so it adds no lag.
SMOOTH = 0.02

#: Minimum decrease of the loss, as a fraction of the first loss, for a suggestion.
_FALLS = 0.01


def smooth(losses: Sequence[float], width: float) -> list[float]:
    """Average each loss with its finite neighbours, weighted by a Gaussian `width` steps wide.

    Example:
        >>> smooth([1.0, 1.0, 1.0], 2.0)
        [1.0, 1.0, 1.0]
    """
    reach = max(1, math.ceil(3 * width))
    weights = [math.exp(-0.5 * (d / max(width, 0.5)) ** 2) for d in range(reach + 1)]
    found = []
    for i, centre in enumerate(losses):
        if not math.isfinite(centre):
            found.append(centre)
            continue
        # As many neighbours on either side, so that the slope at an end of the sweep is not flattened.
        span = min(reach, i, len(losses) - 1 - i)
        near = [
            (weights[abs(d)], losses[i + d])
            for d in range(-span, span + 1)
            if math.isfinite(losses[i + d])
        ]
        found.append(sum(w * v for w, v in near) / sum(w for w, _ in near))
    return found


def stops_at(losses: Sequence[float], diverged: float, width: int) -> int | None:
    """Return the step at which the losses of a learning-rate sweep diverge; `None` if they do not.

    Each step is judged by the mean of its last `width` losses, without later ones, so the result does
    not depend on how often the losses are read.
    """
    recent = [
        sum(losses[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(losses))
    ]
    lowest = first = losses[0]
    for i, value in enumerate(recent):
        if not math.isfinite(value):
            return i
        lowest = min(lowest, value)
        if value > max(first, _ceiling(first, lowest, diverged)):
            return i
    return None


def capped(losses: Sequence[float], diverged: float) -> list[float]:
    """Limit losses to a ceiling, so that a huge loss does not dominate its neighbours' averages."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return list(losses)
    ceiling = max(finite[0], _ceiling(finite[0], min(finite), diverged))
    return [min(loss, ceiling) if math.isfinite(loss) else loss for loss in losses]


def _ceiling(first: float, lowest: float, diverged: float) -> float:
    return lowest + diverged * max(first - lowest, abs(first))


def suggest(
    rates: Sequence[float], even: Sequence[float], skipped: Sequence[bool] = ()
) -> tuple[float | None, float | None]:
    """Return the learning rates at which the loss falls fastest and is lowest; `None` if it never falls.

    Args:
        rates: the learning rate of each step.
        even: the smoothed loss of each step.
        skipped: True for each step that was skipped, whose rate is not suggested.
    """
    finite = [i for i, value in enumerate(even) if math.isfinite(value)]
    if not finite:
        return None, None
    bottom = min(finite, key=lambda i: even[i])
    first = even[finite[0]]
    if first - even[bottom] <= _FALLS * max(abs(first), 1e-12):
        return None, None
    reach = max(1, round(SMOOTH * len(rates)))
    taken = [i for i in finite if i <= bottom and not (skipped and skipped[i])]
    slopes = {i: _slope(even, i, reach) for i in taken}
    if not slopes:
        return None, None
    steepest = min(slopes, key=lambda i: slopes[i])
    return rates[steepest], rates[bottom]


def _slope(even: Sequence[float], i: int, reach: int) -> float:
    """Return the slope of the smoothed losses at a step, by least squares over its neighbours.

    The rates are evenly spaced in the logarithm.
    """
    near = [
        (j - i, even[j])
        for j in range(i - reach, i + reach + 1)
        if 0 <= j < len(even) and math.isfinite(even[j])
    ]
    n = len(near)
    if n < 2:
        return 0.0
    centre, mean = sum(x for x, _ in near) / n, sum(y for _, y in near) / n
    return sum((x - centre) * (y - mean) for x, y in near) / sum((x - centre) ** 2 for x, _ in near)
