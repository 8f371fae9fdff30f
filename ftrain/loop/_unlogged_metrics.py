"""Metrics that have no column in the log, such as values per example.

Read next: `_metric_columns.py`, which reads all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftrain.core.metrics import Metrics, PerExample, Unreduced
from ftrain.tasks.metrics import Histogram

__all__ = ["entries_of", "has_examples", "without_examples"]

#: Metrics without columns in the log.
_UNLOGGED = {PerExample, Unreduced, Histogram}


def has_examples(metrics: Any) -> bool:
    """Return True if the metrics contain per-example values, which have no column in the log.

    A run asks once: a step that returns per-example values only later keeps them until the next read.
    """
    return without_examples(metrics) is not metrics


def without_examples(metrics: Any) -> Any:
    """Return the metrics of a step without per-example values, so that their memory is released."""
    if isinstance(metrics, Metrics):
        entries = entries_of(metrics)
        return metrics if entries is metrics.entries else Metrics(dict(entries))
    return entries_of(metrics) if isinstance(metrics, Mapping) else metrics


def entries_of(metrics: Any) -> Mapping[Any, Any]:
    """Return `{name: metric}` for the metrics of a step that are logged.

    Raises:
        TypeError: the metrics are not a mapping.
    """
    if isinstance(metrics, Metrics):
        entries: Mapping[Any, Any] = metrics.entries
    elif isinstance(metrics, Mapping):
        entries = metrics
    else:
        raise TypeError(
            "the metrics of a step: expected a dict of 0-d tensors, numbers or metrics such as "
            f"ftrain.Mean(total, weight), got {type(metrics).__name__}. Write "
            "`return state, {'loss': loss}`."
        )
    if _UNLOGGED.isdisjoint(map(type, entries.values())):  # takes 0.4 µs
        return entries
    return {name: x for name, x in entries.items() if type(x) not in _UNLOGGED}
