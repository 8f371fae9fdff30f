"""Line search as one traceable loop, which brackets a suitable step and then narrows the bracket.

Each iteration evaluates one trial and updates the bracket by `torch.where`; after a good trial the
remaining iterations do nothing. The loop is `ftrain.scan`, so that a compiled step holds the loss
function once, however many trials there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ftrain.core.cond import apply_if
from ftrain.core.scan import scan

__all__ = ["strong_wolfe"]

Line = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Function from a step length (float64, 0-d) to the value there and the slope along the line."""

T, VALUE, SLOPE = range(3)  # indices of a point's step length, value and slope


class Bracket(NamedTuple):
    """State of the line search; each point is a float64 tensor `(3,)` of step, value and slope.

    Attributes:
        found: bool, 0-d. True if `low` meets both conditions.
        trial: float64, 0-d. The next step to try.
        low: the best point that decreases the value enough; initially, the start of the line.
        high: the other end of the bracket; initially, at infinity.
    """

    found: torch.Tensor
    trial: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def strong_wolfe(
    line: Line,
    value: torch.Tensor,
    slope: torch.Tensor,
    first: torch.Tensor,
    *,
    trials: int,
    c1: float,
    c2: float,
) -> torch.Tensor:
    r"""Return a step size that meets the strong Wolfe conditions.

    $$f(t) \le f(0) + c_1 t f'(0), \qquad |f'(t)| \le c_2 |f'(0)|$$

    Near the minimum, values of $f$ differ by rounding only. There the first condition is computed from
    the slopes, as in Hager and Zhang (2005), "A New Conjugate Gradient Method with Guaranteed Descent".

    Args:
        line: the function along the line.
        value: 0-d, `f(0)`.
        slope: 0-d, `f'(0)`, negative.
        first: float64, 0-d. The first trial.
        trials: the maximum number of trials.
        c1: the constant of the sufficient-decrease condition.
        c2: the constant of the curvature condition.

    Returns:
        float64, 0-d: the step; if none met both conditions, the best that met the first one; 0 if none
        did.

    References:
        Nocedal, Wright (2006), "Numerical Optimization", algorithms 3.5 and 3.6.
    """
    rounding = 4 * torch.finfo(value.dtype).eps
    value, slope = value.double(), slope.double()
    slack = value.abs() * rounding

    def tried(bracket: Bracket) -> Bracket:
        _, t, low, high = bracket
        f, d = line(t)
        point = torch.stack([t, f.double(), d.double()])
        f, d = point[VALUE], point[SLOPE]
        decreases = (f <= value + c1 * t * slope) | (
            (f <= value + slack) & (d <= (2 * c1 - 1) * slope)
        )
        found = decreases & (d.abs() <= -c2 * slope)
        somewhere = torch.isfinite(high[T]) | (low[T] > 0)
        too_far = ~decreases | ((f >= low[VALUE]) & somewhere)
        passed = d * (high[T] - low[T]) >= 0  # the minimum is before this point
        new_high = torch.where(too_far, point, torch.where(passed, low, high))
        new_low = torch.where(too_far, low, point)
        is_bracketed = torch.isfinite(new_high[T])
        # An infinite `high` is replaced by a finite point: otherwise the derivative of `between` would
        # be NaN, even where `where` does not select it.
        between = _between(new_low, torch.where(is_bracketed, new_high, new_low + 1))
        trial = torch.where(is_bracketed, between, 2 * t)
        return Bracket(found, trial, torch.where(found, point, new_low), new_high)

    def body(bracket: Bracket, _: None) -> tuple[Bracket, tuple[()]]:
        return apply_if(~bracket.found, tried, bracket), ()

    zero = torch.zeros_like(value)
    start = Bracket(
        torch.zeros_like(value, dtype=torch.bool),
        first.double().clone(),
        torch.stack([zero, value, slope]),
        torch.stack([zero + torch.inf, zero + torch.inf, zero]),
    )
    last, _ = scan(body, start, None, trials)
    return last.low[T]


def _between(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return the minimizer of the cubic through two points, clamped to the middle 80 % between them."""
    (a, fa, da), (b, fb, db) = low.unbind(), high.unbind()
    s = da + db - 3 * (fa - fb) / _divisor(a - b)
    square = s * s - da * db
    # `clamp(min=0).sqrt()` would have an infinite derivative at 0.
    has_root = ~(square <= 0)  # True for NaN as well
    root = torch.where(has_root, torch.where(has_root, square, 1).sqrt(), 0) * torch.sign(b - a)
    divisor = db - da + 2 * root
    least = b - (b - a) * (db + root - s) / _divisor(divisor)
    middle, half = (a + b) / 2, (a - b).abs() / 2
    usable = torch.isfinite(least) & (a != b) & (divisor != 0)
    least = torch.where(usable, least, middle)
    return torch.minimum(torch.maximum(least, middle - 0.8 * half), middle + 0.8 * half)


def _divisor(x: torch.Tensor) -> torch.Tensor:
    """Replace 0 by 1 in a divisor `x`, so that a quotient that is not used has a finite derivative."""
    return torch.where(x == 0, 1, x)
