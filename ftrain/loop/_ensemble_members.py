"""Number of ensemble members, and columns of their metrics in the log.

An ensemble is a state of `torch.vmap(init_state)`, or several states stacked, under a vmapped step: each
leaf and each metric has a leading axis with one row per member.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

__all__ = [
    "MOST",
    "ONE",
    "expanded",
    "extremes",
    "members_of",
    "names",
    "statistics",
    "with_extremes",
]

#: Maximum number of members listed in a row of the log; larger ensembles have statistics only.
MOST = 64

#: Result of `members_of` for a single run.
ONE = 0


def members_of(state: Any) -> int | None:
    """Return the number of ensemble members in a state; 0 (`ONE`) for a single run, `None` if unknown.

    `step`, a scalar for a single run, has an axis in an ensemble. If a state has no `step`, the
    number is determined from the loss.

    Example:
        >>> from ftrain import TrainState
        >>> state = TrainState(torch.zeros(3, dtype=torch.int64), {}, {}, (), (), torch.zeros(3, 2), {})
        >>> members_of(state), members_of(state.replace(step=torch.tensor(0))), members_of({"w": 1})
        (3, 0, None)
    """
    step = getattr(state, "step", None)
    if not isinstance(step, torch.Tensor):
        return None
    if step.ndim > 1 or not step.numel():
        raise ValueError(
            f"state.step: expected shape () or, for an ensemble, (members,) with at least one member, "
            f"got shape {tuple(step.shape)}. Stack all members along one axis."
        )
    return step.shape[0] if step.ndim else ONE


def statistics(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return a metric's mean over the ensemble members, and its smallest and largest non-NaN value.

    A member with a NaN makes the mean NaN, and does not affect the other two.

    Example:
        >>> statistics("loss", [1.0, math.nan, 3.0])
        {'loss': nan, 'loss_min': 1.0, 'loss_max': 3.0}
    """
    numbers = [value for value in values if not math.isnan(value)]
    return {
        name: functools.reduce(operator.add, values) / len(values),
        f"{name}_min": min(numbers, default=math.nan),
        f"{name}_max": max(numbers, default=math.nan),
    }


def expanded(members: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return one value per ensemble member, as `loss/member_0`; `{}` for more than `MOST` members.

    Example:
        >>> expanded({"loss": [1.0, 3.0]})
        {'loss/member_0': 1.0, 'loss/member_1': 3.0}
    """
    return {
        f"{name}/member_{i}": value
        for name, values in members.items()
        if len(values) <= MOST
        for i, value in enumerate(values)
    }


def with_extremes(values: Mapping[str, float]) -> dict[str, tuple[float, str]]:
    """Pair each logged value with its range over ensemble members, as a text such as ` (1 to 3)`.

    Example:
        >>> with_extremes({"loss": 2.0, "loss_max": 3.0, "loss_min": 1.0, "time_min": 4.0})
        {'loss': (2.0, ' (1 to 3)'), 'time_min': (4.0, '')}
    """
    taken = extremes(values)
    found = {}
    for name, value in values.items():
        if name not in taken:
            low, high = (values.get(f"{name}_{which}", value) for which in ("min", "max"))
            wide = f"{name}_min" in taken and (low, high) != (value, value)
            found[name] = (value, f" ({low:.4g} to {high:.4g})" if wide else "")
    return found


def extremes(names: Collection[str]) -> set[str]:
    """Return the columns `NAME_min` and `NAME_max` of each metric that has both in the log.

    >>> sorted(extremes(["loss", "loss_min", "loss_max", "time_min"]))
    ['loss_max', 'loss_min']
    """
    of = [name for name in names if f"{name}_min" in names and f"{name}_max" in names]
    return {f"{name}_{which}" for name in of for which in ("min", "max")}


def names(name: str, members: int) -> list[str]:
    """Return the log's column names for a metric with one value per ensemble member."""
    return [*statistics(name, [0.0]), *expanded({name: [0.0] * members})]
