"""Reserved column names of the log, which metrics must not use."""

from __future__ import annotations

import functools
from typing import Any

from ftrain.loop import _ensemble_members

__all__ = ["CLOCKS", "PLACE", "check_metrics", "check_values", "one_line"]

#: Columns that identify a row.
PLACE = ("step", "epoch", "split", "time")

#: Values that a result computes from its duration.
CLOCKS = ("duration", "samples_per_second", "tokens_per_second")

_SPREAD = ("grad_norm_min", "grad_norm_max")


@functools.lru_cache(64)
def check_values(names: tuple[Any, ...]) -> None:
    """Raise if a value to log has the name of a column that identifies a row, such as `step`.

    Raises:
        ValueError: a name is reserved.
    """
    for name in names:
        if one_line(name) in PLACE:
            raise ValueError(_reserved(f"Log: value {name!r}", PLACE))


@functools.lru_cache(64)  # only valid names are cached; called at each read
def check_metrics(names: tuple[Any, ...], members: int = _ensemble_members.ONE) -> None:
    """Raise if two metrics, or a metric and a column that the log computes, have the same name.

    Args:
        names: names of the metrics of a step, in any order.
        members: number of ensemble members; `ONE` for a single run.

    Raises:
        ValueError: a name is reserved, or used twice.

    Example:
        >>> check_metrics(("loss", "accuracy"))
        >>> check_metrics(("loss", "time"))
        Traceback (most recent call last):
        ValueError: metric 'time': expected a name other than step, epoch, split, time, duration, ...
    """
    plain: dict[str, Any] = {}
    for name in names:
        if one_line(name) in plain:
            raise ValueError(
                "metrics: expected names with different columns in the log, got "
                f"{plain[one_line(name)]!r} and {name!r}, which have the same column. Rename one "
                "metric."
            )
        plain[one_line(name)] = name
    for name in plain.keys() & {*PLACE, *CLOCKS}:
        raise ValueError(_reserved(f"metric {plain[name]!r}", (*PLACE, *CLOCKS)))
    computed: dict[str, str] = {}
    if "grad_norm" in plain:
        computed |= dict.fromkeys(_SPREAD, "grad_norm")
    if members != _ensemble_members.ONE:
        for name in plain:
            computed |= {
                each: name for each in _ensemble_members.names(name, members) if each != name
            }
    for name in sorted(plain.keys() & computed.keys()):
        raise ValueError(
            f"metric {name!r}: expected a name that the log does not use, got the name of a column that "
            f"the log computes from {computed[name]!r}. Rename it, for instance to 'my_{name}'."
        )


def one_line(name: Any) -> str:
    """Return a name with its line breaks replaced, so that it can head a table column."""
    return " ".join(str(name).splitlines())


def _reserved(what: str, names: tuple[str, ...]) -> str:
    return (
        f"{what}: expected a name other than {', '.join(names)}, which the log writes itself. Rename "
        "it, for instance to 'clip_duration' or 'schedule_step'."
    )
