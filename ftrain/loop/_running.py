"""Running metrics on the host: an exact left fold of what the steps returned.

Steps hand over tensors, which are kept as they are; at a boundary all of them come over in one copy and
are folded as Python floats, in order. So reading at other moments (another `log_every`, a checkpoint in
between) leaves every sum the same to the bit.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.core.metrics import Last, Max, Mean, Metrics, Min, Sum, Unweighted

__all__ = ["Column", "Columns", "Running", "read"]

_KINDS: dict[type, str] = {kind: kind.__name__ for kind in (Last, Max, Mean, Min, Sum)}
_KINDS[Unweighted] = "Mean"
_MOST_ENTRIES = 64  # of a metric that is a vector; larger ones are no numbers for a log


class Column(NamedTuple):
    """One metric over some steps.

    Attributes:
        kind: "Mean", "Sum", "Last", "Max", "Min"; "" for a metric of another class.
        fields: for each of its fields a number a step, of "Last" the last alone; of another class: the
            metrics themselves.
        unweighted: whether it is a mean that came without a weight.
    """

    kind: str
    fields: tuple[list[Any], ...]
    unweighted: bool = False


class Columns(NamedTuple):
    """What some steps returned that have the same metrics.

    Attributes:
        steps: how many.
        columns: `{name: Column}`.
    """

    steps: int
    columns: dict[str, Column]


@dataclasses.dataclass
class Running:
    """Metrics over a stretch of steps.

    Attributes:
        steps: how many.
        samples: rows.
        tokens: tokens.
        entries: `{name: (kind, fields)}`; of a metric of another class, its leaves on the host.
        like: `{name: metric}`, how metrics of other classes are built, as far as they were seen.
    """

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    entries: dict[str, tuple[str, tuple[Any, ...]]] = dataclasses.field(default_factory=dict)
    like: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def add(self, columns: Columns) -> None:
        """Some steps' metrics, after all those before.

        Raises:
            ValueError: a metric has become one of another kind.
        """
        for name, (kind, fields, _) in columns.columns.items():
            before = self.entries.get(name)
            if before is not None and before[0] != kind:
                raise ValueError(
                    f"metric {name!r} was a {before[0] or 'metric of another class'} and is now a "
                    f"{kind or 'metric of another class'}; it must stay of one kind"
                )
            if kind:
                folded = _fold(kind, None if before is None else before[1], fields)
            else:
                self.like[name] = fields[0][-1]
                folded = _fold_other(None if before is None else before[1], fields[0])
            self.entries[name] = (kind, folded)

    def values(self) -> dict[str, float]:
        """`{name: value}`, the loss first; a short vector has `name/0`, `name/1`, ..."""
        found: dict[str, float] = {}
        for name in sorted(self.entries, key=lambda name: (name != "loss", name)):
            kind, fields = self.entries[name]
            if kind == "Mean":
                total, weight = fields
                found[name] = total / weight if weight else math.nan
            elif kind:
                found[name] = float(fields[0])
            elif name in self.like:
                value = tree.unflatten(tree.structure(self.like[name]), fields).value
                if value.ndim == 0:
                    found[name] = float(value)
                elif value.numel() <= _MOST_ENTRIES:
                    found |= {f"{name}/{i}": float(x) for i, x in enumerate(value.reshape(-1))}
        return found

    def to_json(self) -> dict[str, Any]:
        """As JSON; tensors by their bytes."""
        entries = {
            name: [kind, [_encode(field) for field in fields]]
            for name, (kind, fields) in self.entries.items()
        }
        return {
            "steps": self.steps,
            "samples": self.samples,
            "tokens": self.tokens,
            "entries": entries,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Running:
        """What `to_json` was called on."""
        entries = {
            name: (kind, tuple(_decode(field) for field in fields))
            for name, (kind, fields) in content["entries"].items()
        }
        return cls(content["steps"], content["samples"], content["tokens"], entries)


def read(steps: Sequence[Any], rows: Sequence[int] | None = None) -> list[Columns]:
    """What some steps returned, as numbers: one copy for each device and dtype, however many steps.

    Args:
        steps: for each step a `Metrics`, or a mapping of names to metrics, 0-d tensors and numbers
            (those count as a `Mean` of weight one).
        rows: how many samples each step saw: the weights of means that came without one.

    Returns:
        Columns for each stretch of steps with the same metrics; one where all have the same.

    Raises:
        TypeError: a metric is no number; the message names it.
    """
    found = []
    for names, values in _alike(steps):
        by_name = zip(names, zip(*values, strict=True), strict=True)
        found.append(
            Columns(len(values), {name: _column(name, column) for name, column in by_name})
        )
    columns = [column for chunk in found for column in chunk.columns.values() if column.kind]
    _fetch(field for column in columns for field in column.fields)
    if rows is not None:
        _weigh(found, rows)
    for chunk in found:
        _add_spread(chunk.columns)
    return found


def _fold(
    kind: str, before: tuple[Any, ...] | None, fields: tuple[list[Any], ...]
) -> tuple[Any, ...]:
    """From the left, one after the other: never `sum`, which may compensate."""
    if kind == "Last":
        return (fields[0][-1],)
    starts = (None,) * len(fields) if before is None else before
    merge = {"Max": _larger, "Min": _smaller}.get(kind, operator.add)
    return tuple(
        functools.reduce(merge, field) if start is None else functools.reduce(merge, field, start)
        for field, start in zip(fields, starts, strict=True)
    )


def _larger(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _smaller(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else min(a, b)


def _fold_other(before: tuple[Any, ...] | None, metrics: list[Any]) -> tuple[Any, ...]:
    on_host = [tree.map(lambda leaf: leaf.detach().cpu(), metric) for metric in metrics]
    if before is not None:
        on_host.insert(0, tree.unflatten(tree.structure(metrics[0]), before))
    return tuple(tree.leaves(functools.reduce(lambda a, b: a.merge(b), on_host)))


def _alike(steps: Sequence[Any]) -> Iterator[tuple[list[Any], list[tuple[Any, ...]]]]:
    """Stretches of steps whose metrics have the same names and kinds: names, and a row for each step."""
    names: list[Any] = []
    kinds: list[type] = []
    rows: list[tuple[Any, ...]] = []
    for metrics in steps:
        entries = _entries(metrics)
        row = tuple(entries.values())
        if rows and (list(entries) != names or list(map(type, row)) != kinds):
            yield names, rows
            rows = []
        if not rows:
            names, kinds = list(entries), list(map(type, row))
        rows.append(row)
    if rows:
        yield names, rows


def _entries(metrics: Any) -> Mapping[Any, Any]:
    if isinstance(metrics, Metrics):
        return metrics.entries
    if isinstance(metrics, Mapping):
        return metrics
    raise TypeError(
        "a step must return `(state, metrics)` with metrics a dict of 0-d tensors, numbers or metrics "
        f"such as ftrain.Mean(total, weight); found {type(metrics).__name__}"
    )


def _column(name: Any, values: tuple[Any, ...]) -> Column:
    first = values[0]
    kind = _KINDS.get(type(first))
    if kind is not None and all(map(_is_number, first)):
        if kind == "Last":
            values = values[-1:]
        fields = tuple(map(list, zip(*values, strict=True)))
        return Column(kind, fields, isinstance(first, Unweighted))
    if _is_number(first):
        return Column("Mean", (list(values), [1.0] * len(values)), unweighted=True)
    if callable(getattr(first, "merge", None)) and not isinstance(first, torch.Tensor):
        return Column("", (list(values),))
    found = f"shape {tuple(first.shape)}" if isinstance(first, torch.Tensor) else repr(first)
    raise TypeError(
        f"metric {name!r} must be a 0-d tensor, a number, or a metric such as "
        f"ftrain.Mean(total, weight); found {found}. Reduce it first: value.mean()."
    )


def _is_number(value: Any) -> bool:
    return value.ndim == 0 if isinstance(value, torch.Tensor) else isinstance(value, (int, float))


def _fetch(fields: Iterable[list[Any]]) -> None:
    """Tensors become numbers, in place: one by one from the host, in one copy from a device."""
    wanted: dict[tuple[torch.device, torch.dtype], list[list[Any]]] = {}
    for field in fields:
        if not isinstance(field[0], torch.Tensor):
            continue
        if field[0].is_cpu:  # 0.3 µs each; stacking them takes 1.3
            field[:] = map(torch.Tensor.item, field)
        else:
            wanted.setdefault((field[0].device, field[0].dtype), []).append(field)
    for columns in wanted.values():
        with torch.no_grad():
            numbers = torch.stack([value for column in columns for value in column]).tolist()
        start = 0
        for column in columns:
            column[:], start = numbers[start : start + len(column)], start + len(column)


def _weigh(found: list[Columns], rows: Sequence[int]) -> None:
    """Means without a weight get that of their batch, in place; where its size is not known, one."""
    start = 0
    for steps, columns in found:
        sizes = rows[start : start + steps]
        for column in columns.values():
            if column.unweighted:
                totals, weights = column.fields
                for i, size in enumerate(sizes):
                    if size and weights[i]:
                        totals[i], weights[i] = totals[i] / weights[i] * size, size
        start += steps


def _add_spread(columns: dict[str, Column]) -> None:
    """The smallest and the largest gradient norm beside the mean; skipped steps have none."""
    norm = columns.get("grad_norm")
    if norm is None or norm.kind != "Mean":
        return
    norms = [total / weight for total, weight in zip(*norm.fields, strict=True) if weight]
    if norms:
        columns["grad_norm_min"] = Column("Min", (norms,))
        columns["grad_norm_max"] = Column("Max", (norms,))


def _encode(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "bytes": base64.b64encode(data).decode(),
    }


def _decode(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    data = bytearray(base64.b64decode(value["bytes"]))
    dtype = getattr(torch, value["dtype"])
    return torch.frombuffer(data, dtype=dtype).clone().reshape(value["shape"])
