"""Comparison of two times, with a test of whether their difference is more than noise.

The test uses a confidence interval of the median between two order statistics, from the binomial
distribution (the sign test), so that it assumes nothing about the distribution of the times. Two
contenders that took turns are compared within each turn, so that a change in the machine's load cancels.

References:
    Conover (1999). Practical Nonparametric Statistics. 3rd ed., section 3.2.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

__all__ = ["CONFIDENCE", "RESOLUTION", "Difference", "compare_runs", "compare_turns"]

CONFIDENCE = 0.99
# Two compilations of one function may differ by this ratio, for example because of memory addresses.
RESOLUTION = 0.01


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference between two measured times: their ratio, with a confidence interval.

    Attributes:
        ratio: the first time over the second.
        low: the lower end of the interval of the ratio, at a confidence of 99 %; 0 with too few turns.
        high: the upper end of the interval; infinite with too few turns.

    Example:
        >>> print(Difference(1.3, 1.25, 1.36))
        1.30 times (1.25 to 1.36)
        >>> print(Difference(1.02, 0.97, 1.05))
        no difference beyond the noise (0.97 to 1.05)
    """

    ratio: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        """True if the whole confidence interval of the ratio differs from 1 by more than 1 %."""
        return self.low > 1 + RESOLUTION or self.high < 1 / (1 + RESOLUTION)

    def inverted(self) -> Difference:
        """Return the difference with the roles of the two times exchanged."""
        return Difference(1 / self.ratio, 1 / self.high, 1 / self.low if self.low else math.inf)

    def __str__(self) -> str:
        if not self.low:
            return f"{self.ratio:.2f} times, in too few turns to tell it from noise"
        interval = f"({self.low:.2f} to {self.high:.2f})"
        if not self.is_real:
            return f"no difference beyond the noise {interval}"
        return f"{self.ratio:.2f} times {interval}"


def compare_turns(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two contenders that were timed in turn, by the ratio of their times in each turn.

    Args:
        first: the time of one contender in each turn.
        second: the time of the other contender in the same turns.

    Example:
        >>> slower = [2.0, 4.1, 2.0, 2.1, 2.0, 4.0, 1.9, 2.0]  # two turns on a busy machine
        >>> faster = [1.0, 2.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0]
        >>> compare_turns(slower, faster).is_real
        True
    """
    logs = [_log(a) - _log(b) for a, b in zip(first, second, strict=True)]
    low, high = median_interval(logs)
    return Difference(math.exp(statistics.median(logs)), math.exp(low), math.exp(high))


def compare_runs(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two separate runs, by the confidence intervals of their median times.

    Args:
        first: the time of one run in each of its turns.
        second: the time of the other run in each of its turns.
    """
    a, b = [_log(x) for x in first], [_log(x) for x in second]
    (a_low, a_high), (b_low, b_high) = median_interval(a), median_interval(b)
    ratio = math.exp(statistics.median(a) - statistics.median(b))
    return Difference(ratio, math.exp(a_low - b_high), math.exp(a_high - b_low))


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return a confidence interval for the median of the values' distribution.

    The ends are two of the values. With too few values (fewer than 8 for 99 %) the interval is infinite.

    Example:
        >>> median_interval(range(9))
        (0, 8)
        >>> median_interval(range(5))
        (-inf, inf)
    """
    n = len(values)
    tail, left_out = 0.0, 0
    while left_out < n:
        tail += math.comb(n, left_out) / 2**n
        if 2 * tail > 1 - confidence:
            break
        left_out += 1
    if not left_out:
        return -math.inf, math.inf
    ordered = sorted(values)
    return ordered[left_out - 1], ordered[n - left_out]


def _log(seconds: float) -> float:
    return math.log(max(seconds, 1e-9))  # a clock may return the same time twice
