"""Metrics of several steps, read from the device in one copy and kept per step.

Read next: `_metric_totals.py`, which merges them.
"""

from __future__ import annotations

import collections
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core._words import brief
from ftrain.core.metrics import (
    BatchMean,
    Last,
    Max,
    Mean,
    Metrics,
    Min,
    Sum,
    Unreduced,
)
from ftrain.loop._ensemble_members import MOST, ONE
from ftrain.loop._ensemble_members import names as names_of
from ftrain.loop._metric_transfer import fetch
from ftrain.loop._reserved_names import check_metrics
from ftrain.loop._unlogged_metrics import entries_of
from ftrain.loop.events import LoopWarning

__all__ = [
    "Column",
    "Columns",
    "check_names",
    "read",
    "row_names",
]

_KINDS: dict[type, str] = {kind: kind.__name__ for kind in (Last, Max, Mean, Min, Sum)}
_KINDS[BatchMean] = "Mean"


class Column(NamedTuple):
    """Values of one metric at several steps.

    Attributes:
        kind: "Mean", "Sum", "Last", "Max", "Min"; "" for a metric of another class.
        fields: for each of its fields a list with one number per step (for "Last" only the last one);
            for another class, a list of the metrics. For an ensemble's metric, each field is a list of
            such lists, one per member.
        unweighted: True for a mean without a weight.
        members: number of members; `ONE` for a single number.
    """

    kind: str
    fields: tuple[list[Any], ...]
    unweighted: bool = False
    members: int = ONE

    def of_members(self) -> Iterator[tuple[list[Any], ...]]:
        """Yield, for each ensemble member, the fields of the metric with that member's values."""
        if self.members == ONE:
            return iter([self.fields])
        return zip(*self.fields, strict=True)


class Columns(NamedTuple):
    """Metrics of consecutive steps that have the same metric names and kinds (`Mean`, `Sum`, ...).

    Attributes:
        steps: number of steps.
        columns: `{name: Column}`. Skipped steps count only in `skipped` and in metrics of kind "Last".
    """

    steps: int
    columns: dict[str, Column]


def read(
    steps: Sequence[Any], rows: Sequence[int] | None = None, members: int | None = None
) -> list[Columns]:
    """Return the metrics of several steps as Python numbers, with one copy per device and dtype.

    Args:
        steps: for each step a `Metrics`, or a mapping of names to metrics, 0-d tensors and numbers
            (those count as a `Mean` of weight one); with a leading axis for an ensemble.
        rows: number of samples of each step, used as weights of means without a weight.
        members: number of members, as returned by `members_of`.

    Returns:
        Columns for each run of consecutive steps with the same metrics.

    Raises:
        TypeError: a metric is not a number, or is empty; the message names it.
        ValueError: the trainer computes a value of the same name; a metric changes its shape.
    """
    found = []
    for names, values in _alike(steps):
        n = members
        if n is None:
            n = _members_in(dict(zip(names, values[0], strict=True)), members)
        check_metrics(tuple(names), n)
        by_name = zip(names, zip(*values, strict=True), strict=True)
        found.append(
            Columns(len(values), {name: _column(name, column, n) for name, column in by_name})
        )
    fetch(
        (name, column.members != ONE, field)
        for chunk in found
        for name, column in chunk.columns.items()
        if column.kind
        for field in column.fields
    )
    for chunk in found:
        _by_member(chunk.columns)
    if rows is not None:
        _weigh(found, rows)
    for chunk in found:
        _leave_out_skipped(chunk)
        _add_spread(chunk.columns)
    return found


def row_names(metrics: Any, members: int | None = None) -> list[str]:
    """Return the log's column names for a step's metrics, without reading values from the device.

    Args:
        metrics: the metrics that a step returned.
        members: number of members, as returned by `members_of`.

    Raises:
        TypeError: a metric is not a number.
        ValueError: the trainer computes a value of the same name.
    """
    entries = entries_of(metrics)
    n = _members_in(entries, members)
    check_metrics(tuple(entries), n)
    found = []
    for name, entry in entries.items():
        column = _column(name, (entry,), n)
        keys = [str(name)]
        if not column.kind:
            value = torch.as_tensor((entry if column.members == ONE else _row(entry, 0)).value)
            if value.ndim:
                keys = [f"{name}/{i}" for i in range(value.numel()) if value.numel() <= MOST]
        for key in keys:
            found += [key] if column.members == ONE else names_of(key, n)
    return found


def check_names(metrics: Any, members: int | None) -> Literal[False]:
    """Raise right after a step if its metrics are invalid or share a column of the log.

    Warn about metrics with one entry per example, which are not logged, unless they are `PerExample`.

    Returns:
        False: the metrics need no further check.

    Raises:
        TypeError: a metric is not a number, or is empty.
        ValueError: the trainer computes a value of the same name; two metrics have one column.
    """
    columns = collections.Counter(row_names(metrics, members))
    twice = [name for name, n in columns.items() if n > 1]
    if twice:
        raise ValueError(
            "metrics: expected names with different columns in the log, got two metrics that "
            f"write column {twice[0]!r} (each entry of a vector, and each ensemble member, has a "
            "column). Rename one."
        )
    all_entries = metrics.entries if isinstance(metrics, Metrics) else metrics
    bare = {name: x.values for name, x in all_entries.items() if type(x) is Unreduced}
    if bare:
        listed = ", ".join(f"{name!r} ({brief(values)})" for name, values in bare.items())
        warnings.warn(
            f"metrics with one entry per example are not logged: {listed}. Return the mean to log "
            "it, value.mean(), or ftrain.PerExample(value) if only the step's caller reads it.",
            LoopWarning,
            stacklevel=2,
        )
    return False


def _members_in(entries: Mapping[Any, Any], members: int | None) -> int:
    """Return `members`; if it is `None`, determine the number of ensemble members from the loss."""
    if members is not None:
        return members
    loss = entries.get("loss")
    for leaf in tree.leaves(loss) if type(loss) in _KINDS else [loss]:
        if isinstance(leaf, torch.Tensor) and leaf.ndim == 1:
            return leaf.shape[0]
    return ONE


def _alike(steps: Sequence[Any]) -> Iterator[tuple[list[Any], list[tuple[Any, ...]]]]:
    """Group consecutive steps whose metrics have equal names and classes; yield names and values."""
    names: list[Any] = []
    kinds: list[type] = []
    rows: list[tuple[Any, ...]] = []
    for metrics in steps:
        entries = entries_of(metrics)
        row = tuple(entries.values())
        if rows and ([*entries] != names or [*map(type, row)] != kinds):
            yield names, rows
            rows = []
        if not rows:
            names, kinds = list(entries), list(map(type, row))
        rows.append(row)
    if rows:
        yield names, rows


def _column(name: Any, values: tuple[Any, ...], n: int) -> Column:
    first = values[0]
    kind = _KINDS.get(type(first), "")
    if kind or not _is_metric(first):
        fields = tuple(first) if kind else (first,)
        members = _members(fields, n)
        if members is None:
            for x in fields:
                if not kind or not _has_numbers(x):
                    raise TypeError(_not_a_metric(name, x, n))
        elif not kind:
            return Column("Mean", (list(values), [1.0] * len(values)), True, members)
        else:
            if kind == "Last":
                values = values[-1:]
            columns = tuple(map(list, zip(*values, strict=True)))
            return Column(kind, columns, isinstance(first, BatchMean), members)
    tensors = [leaf for leaf in tree.leaves(first) if isinstance(leaf, torch.Tensor)]
    leading = {leaf.shape[0] for leaf in tensors if leaf.ndim}
    return Column("", (list(values),), members=n if leading == {n} else ONE)


def _has_numbers(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(value.numel()) and not value.is_complex()
    return isinstance(value, (int, float))


def _is_metric(value: Any) -> bool:
    return callable(getattr(value, "merge", None)) and not isinstance(value, torch.Tensor)


def _members(fields: Sequence[Any], n: int) -> int | None:
    """Return the number of ensemble members in a metric's fields; `None` if a field is invalid.

    The number is n if a field has shape `(n,)`, and `ONE` if all fields are scalars.
    """
    members = ONE
    for x in fields:
        if not isinstance(x, torch.Tensor):
            if not isinstance(x, (int, float)):
                return None
        elif x.is_complex():
            return None
        elif x.ndim:
            if n == ONE or x.shape != (n,):
                return None
            members = n
    return members


def _not_a_metric(name: Any, found: Any, n: int) -> str:
    """Return the error message for a value that is not a metric."""
    got = f"shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else repr(found)
    remedy = "Reduce it first: value.mean()."
    if isinstance(found, torch.Tensor) and not found.numel():
        remedy = "If it may be empty, return ftrain.Mean(value.sum(), value.numel())."
    elif isinstance(found, torch.Tensor) and found.is_complex():
        got, remedy = f"dtype {found.dtype}", "Return its absolute value: value.abs().mean()."
    wanted = (
        "a 0-d tensor" if n == ONE else f"a tensor of shape ({n},), one number per ensemble member"
    )
    return (
        f"metric {name!r}: expected {wanted}, a number, or a metric such as "
        f"ftrain.Mean(total, weight), got {got}. {remedy}"
    )


def _by_member(columns: dict[str, Column]) -> None:
    """Turn each ensemble metric from one list per step into one list per member, in place."""
    for name, column in columns.items():
        n = column.members
        if n == ONE:
            continue
        if column.kind:
            fields = tuple(_turned(name, field, n) for field in column.fields)
        else:
            rows = [[_row(metric, i) for metric in column.fields[0]] for i in range(n)]
            fields = (rows,)
        columns[name] = column._replace(fields=fields)


def _turned(name: Any, field: list[Any], n: int) -> list[Any]:
    """Transpose values from one list per step to one list per ensemble member; repeat scalars."""
    rows = [value if isinstance(value, list) else [value] * n for value in field]
    if any(len(row) != n for row in rows):
        got = ", ".join(map(str, sorted({len(row) for row in rows})))
        raise ValueError(
            f"metric {name!r}: expected one entry for each member of an ensemble at each step, got "
            f"{got} entries. If this is a single run, reduce it: value.mean()."
        )
    return [list(member) for member in zip(*rows, strict=True)]


def _row(metric: Any, i: int) -> Any:
    """Return the metric of ensemble member i: index its tensors with i, and keep its 0-d leaves."""
    return tree.map(lambda x: x[i] if isinstance(x, torch.Tensor) and x.ndim else x, metric)


def _weigh(found: list[Columns], rows: Sequence[int]) -> None:
    """Weight each unweighted mean by its batch size, in place; by 1 if the size is unknown."""
    start = 0
    for steps, columns in found:
        sizes = rows[start : start + steps]
        for column in columns.values():
            if column.unweighted:
                for totals, weights in column.of_members():
                    for i, size in enumerate(sizes):
                        if size and weights[i]:
                            totals[i], weights[i] = totals[i] / weights[i] * size, size
        start += steps


def _leave_out_skipped(chunk: Columns) -> None:
    """Remove the values of skipped steps, in place, so that means cover only the applied steps.

    Metrics of kind "Last" (a learning rate, a loss scale) keep all steps, and so do `skipped` itself and
    the counts of modules in which a non-finite value began.
    """
    skipped = chunk.columns.get("skipped")
    if skipped is None or not skipped.kind or skipped.kind == "Last":
        return
    if not any(any(fields[0]) for fields in skipped.of_members()):
        return
    applied = [[not one for one in fields[0]] for fields in skipped.of_members()]
    # The mask for metrics without an axis of ensemble members.
    every = [any(step) for step in zip(*applied, strict=True)]
    for name, column in chunk.columns.items():
        if column.kind == "Last" or name == "skipped" or str(name).startswith("nonfinite_"):
            continue
        alike = column.members == skipped.members
        for i, fields in enumerate(column.of_members()):
            mask = applied[i] if alike else every
            for field in fields:
                field[:] = itertools.compress(field, mask)


def _add_spread(columns: dict[str, Column]) -> None:
    """Add the columns `grad_norm_min` and `grad_norm_max`, over all steps and ensemble members."""
    norm = columns.get("grad_norm")
    if norm is None or norm.kind != "Mean":
        return
    norms = [
        total / weight
        for totals, weights in norm.of_members()
        for total, weight in zip(totals, weights, strict=True)
        if weight
    ]
    if norms:
        columns["grad_norm_min"] = Column("Min", (norms,))
        columns["grad_norm_max"] = Column("Max", (norms,))
