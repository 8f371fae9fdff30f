"""Limits of a run in epochs and steps; fractional epochs become steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["check_limits", "steps_of", "whole_limits"]

_INTEGERS: tuple[Any, ...] = (int, np.integer)
_NUMBERS: tuple[Any, ...] = (*_INTEGERS, float, np.floating)


def check_limits(epochs: float | None, max_steps: int | None) -> None:
    """Raise unless `epochs` or `max_steps` is given; a given limit must be a number of at least 0."""
    if epochs is None and max_steps is None:
        raise ValueError(
            "fit: expected epochs or max_steps, got neither. Write fit(..., epochs=10) or fit(..., "
            "max_steps=1000)."
        )
    for name, value, kinds in (("epochs", epochs, _NUMBERS), ("max_steps", max_steps, _INTEGERS)):
        known = isinstance(value, kinds) and not isinstance(value, bool)
        if value is None or (known and 0 <= value < math.inf):
            continue
        what = "an integer" if name == "max_steps" else "a number"
        raise ValueError(f"{name}: expected {what} of at least 0, got {value!r}. Write {name}=10.")


def whole_limits(
    epochs: float | None, max_steps: int | None, per_epoch: int | None
) -> tuple[int | None, int | None]:
    """Convert the limits of a run, perhaps fractional epochs, to whole epochs and steps.

    Args:
        epochs: the number of epochs; `None`: no limit.
        max_steps: the number of steps; `None`: no limit.
        per_epoch: steps per epoch; `None`: unknown.

    Raises:
        ValueError: `epochs` is fractional and `per_epoch` is `None`.

    Example:
        >>> whole_limits(2.5, None, 10), whole_limits(2.5, 8, 10), whole_limits(2.0, None, None)
        ((3, 25), (3, 8), (2, None))
    """
    max_steps = None if max_steps is None else int(max_steps)  # an integer of NumPy too
    if epochs is None or epochs == int(epochs):
        return None if epochs is None else int(epochs), max_steps
    if per_epoch is None:
        raise ValueError(
            f"epochs: expected a whole number for data without a length, got {epochs!r}. Write "
            "fit(..., max_steps=1000)."
        )
    steps = steps_of(epochs, per_epoch)
    return math.ceil(epochs), steps if max_steps is None else min(steps, max_steps)


def steps_of(epochs: float, steps_per_epoch: int) -> int:
    """Return the number of steps in a number of epochs, rounded up if `epochs` is fractional.

    Example:
        >>> steps_of(2, 30), steps_of(0.1, 30), steps_of(2.5, 3)
        (60, 3, 8)
    """
    return math.ceil(round(epochs * steps_per_epoch, 6))  # 0.1 * 30 is 3.0000000000000004
