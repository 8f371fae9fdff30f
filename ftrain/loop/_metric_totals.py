"""Totals of metrics over steps, added on the host in the order of the steps.

The tensors that steps return stay unread until a boundary; then all of them are copied at once and
folded as Python floats, in order. Sums are therefore bitwise independent of when they are read (another
`log_every`, a checkpoint in between).
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.loop._ensemble_members import ONE, statistics
from ftrain.loop._metric_columns import Column, Columns
from ftrain.loop.result import EpochResult

__all__ = ["MetricTotals"]

Entry = tuple[str, tuple[Any, ...]]
"""Kind of a metric (`"Mean"`, `"Sum"`, ...) and its totals; `()` if every step was skipped."""

_MOST_ENTRIES = 64  # entries of a vector metric; a longer vector is not logged


@dataclasses.dataclass(frozen=True)
class MetricTotals:
    """Totals of metrics over consecutive steps.

    Attributes:
        steps: number of steps.
        samples: number of rows.
        tokens: number of tokens.
        entries: `{name: (kind, fields)}`; for a metric of another class, the fields are its leaves on
            the host.
        members: `{name: [(kind, fields), ...]}`, one entry for each member of an ensemble.
        like: `{name: metric}`, examples of metrics of other classes, from which they are rebuilt.
    """

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    entries: Mapping[str, Entry] = dataclasses.field(default_factory=dict)
    members: Mapping[str, list[Entry]] = dataclasses.field(default_factory=dict)
    like: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def add(
        self, chunks: Iterable[Columns], steps: int = 0, samples: int = 0, tokens: int = 0
    ) -> MetricTotals:
        """Return the totals after adding later steps.

        Args:
            chunks: the metrics of the steps to add.
            steps: number of steps.
            samples: number of rows.
            tokens: number of tokens.

        Raises:
            ValueError: a metric changed its kind or its number of members.
        """
        entries, by_member, like = dict(self.entries), dict(self.members), dict(self.like)
        for chunk in chunks:
            for name, column in chunk.columns.items():
                kind, fields, _, members = column
                before = _before(name, column, entries.get(name), by_member.get(name))
                if members == ONE:
                    entries[name] = (kind, _fold(kind, before[0][1], fields))
                else:
                    each = zip(before, column.of_members(), strict=True)
                    by_member[name] = [(kind, _fold(kind, was[1], own)) for was, own in each]
                if not kind:
                    metrics = next(filter(None, (own[0] for own in column.of_members())), None)
                    if metrics is not None:
                        like[name] = metrics[-1]
        seen = (self.steps + steps, self.samples + samples, self.tokens + tokens)
        return MetricTotals(*seen, entries, by_member, like)

    def result(
        self, split: str, epoch: int, step: int, duration: float | None = None, whole: bool = True
    ) -> EpochResult:
        """Return an `EpochResult` of the metrics, their values per ensemble member, and the counts."""
        members = self.by_member()
        values = self.values(members)
        seen = (self.samples, self.tokens, duration)
        return EpochResult(split, epoch, step, values, *seen, whole, members)

    def values(self, members: Mapping[str, tuple[float, ...]] | None = None) -> dict[str, float]:
        """Return `{name: value}`, the loss first; a short vector becomes `name/0`, `name/1`, ...

        For an ensemble's metric, the mean, the smallest and the largest value, named as in `statistics`.

        Args:
            members: the result of `by_member`, to avoid computing it again.
        """
        found: dict[str, float] = {}
        members = self.by_member() if members is None else members
        for name in _in_order({*self.entries, *members}):
            if name in members:
                found |= statistics(name, members[name])
            else:  # overwrites statistics of the same name: extremes of a norm are over the steps too
                found |= self._value(name, self.entries[name])
        return found

    def by_member(self) -> dict[str, tuple[float, ...]]:
        """Return `{name: (value of member 0, of member 1, ...)}` for the metrics of an ensemble."""
        found: dict[str, tuple[float, ...]] = {}
        for name in _in_order(self.members):
            rows = [self._value(name, entry) for entry in self.members[name]]
            for key in rows[0]:
                found[key] = tuple(row.get(key, math.nan) for row in rows)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the totals as a dict that `json.dumps` accepts, with the bytes of tensors in base64."""
        content = {
            "steps": self.steps,
            "samples": self.samples,
            "tokens": self.tokens,
            "entries": {name: _entry_json(entry) for name, entry in self.entries.items()},
        }
        if self.members:
            content["members"] = {
                name: [_entry_json(entry) for entry in entries]
                for name, entries in self.members.items()
            }
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> MetricTotals:
        """Return the metric totals from the output of `to_json`."""
        entries = {name: _entry(entry) for name, entry in content["entries"].items()}
        members = {
            name: [_entry(each) for each in entries]
            for name, entries in content.get("members", {}).items()
        }
        return cls(content["steps"], content["samples"], content["tokens"], entries, members)

    def _value(self, name: str, entry: Entry) -> dict[str, float]:
        kind, fields = entry
        if not fields:
            return {name: math.nan} if kind else {}
        if kind == "Mean":
            total, weight = fields
            return {name: total / weight if weight else math.nan}
        if kind:
            return {name: float(fields[0])}
        if name not in self.like:
            return {}
        value = torch.as_tensor(tree.unflatten(tree.structure(self.like[name]), fields).value)
        if value.ndim == 0:
            return {name: float(value)}
        if value.numel() <= _MOST_ENTRIES:
            return {f"{name}/{i}": float(x) for i, x in enumerate(value.reshape(-1))}
        return {}


def _before(
    name: str, column: Column, single: Entry | None, several: list[Entry] | None
) -> Sequence[Entry]:
    """Return a metric's earlier totals, one per ensemble member; raise if its kind or shape changed."""
    kind, n = column.kind, column.members
    before = [single] if single is not None else several
    if before is None:
        return [(kind, ())] * max(n, 1)
    if before[0][0] != kind:
        was, now = (each or "metric of another class" for each in (before[0][0], kind))
        raise ValueError(
            f"metric {name!r}: expected a {was}, as at earlier steps, got a {now}. Return the same "
            "kind of metric at each step."
        )
    if n != (ONE if several is None else len(several)):
        was, now = (
            "a single number" if each == ONE else f"one number for each of {each} members"
            for each in (ONE if several is None else len(several), n)
        )
        raise ValueError(
            f"metric {name!r}: expected {was}, as at earlier steps, got {now}. Return it with the same "
            "shape at each step."
        )
    return before


def _in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (name != "loss", name))


def _fold(kind: str, before: tuple[Any, ...], fields: tuple[list[Any], ...]) -> tuple[Any, ...]:
    """Return a metric's totals after adding its values at later steps, from left to right.

    Python's `sum` is not used: since 3.12 it compensates rounding errors, which changes the bits.
    """
    if not fields[0]:
        return before
    if not kind:
        return _fold_other(before, fields[0])
    if kind == "Last":
        return (fields[0][-1],)
    if kind in ("Max", "Min"):
        values = [*before, *fields[0]]
        if any(map(math.isnan, values)):
            return (math.nan,)
        return (max(values) if kind == "Max" else min(values),)
    if not before:
        return tuple(functools.reduce(operator.add, field) for field in fields)
    return tuple(
        functools.reduce(operator.add, field, start)
        for field, start in zip(fields, before, strict=True)
    )


def _fold_other(before: tuple[Any, ...], metrics: list[Any]) -> tuple[Any, ...]:
    on_host = [tree.map(_on_host, metric) for metric in metrics]
    if before:
        on_host.insert(0, tree.unflatten(tree.structure(metrics[0]), before))
    return tuple(tree.leaves(functools.reduce(lambda a, b: a.merge(b), on_host)))


def _on_host(leaf: Any) -> Any:
    return leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf


def _entry_json(entry: Entry) -> list[Any]:
    kind, fields = entry
    return [kind, [_encode(field) for field in fields]]


def _entry(content: Sequence[Any]) -> Entry:
    kind, fields = content
    return kind, tuple(_decode(field) for field in fields)


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
