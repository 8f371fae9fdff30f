"""Members of a sweep: every combination of given hyper-parameter values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

__all__ = ["grid"]


def grid(**axes: Iterable[Any]) -> list[dict[str, Any]]:
    """Return every combination of the values of some axes; the last axis varies fastest.

    Args:
        **axes: name -> its values. Names are those of `sweep`: hyper-parameters, entries of the
            extras, `seed`.

    Returns:
        One dict for each combination, in the order of the rows of `sweep(steps, over=...)`.

    Raises:
        ValueError: an axis has no value, or there is no axis.
        TypeError: the values of an axis are a string or not iterable.

    Example:
        >>> grid(learning_rate=[0.1, 0.3], seed=range(2))[1:3]
        [{'learning_rate': 0.1, 'seed': 1}, {'learning_rate': 0.3, 'seed': 0}]
    """
    if not axes:
        raise ValueError(
            "grid: expected at least one axis, got 0. Write grid(learning_rate=[...])."
        )
    values = {}
    for name, axis in axes.items():
        if isinstance(axis, str) or not isinstance(axis, Iterable):
            raise TypeError(
                f"{name}: expected a sequence of values, got {type(axis).__name__} {axis!r}. Write "
                f"{name}=[{axis!r}]."
            )
        values[name] = list(axis)
        if not values[name]:
            raise ValueError(f"{name}: expected at least one value, got 0. Leave the axis out.")
    return [dict(zip(values, row, strict=True)) for row in itertools.product(*values.values())]
