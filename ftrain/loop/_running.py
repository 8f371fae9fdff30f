"""Running metrics on the host: an exact left fold of what the steps returned.

Steps hand over tensors, which are kept as they are; at a boundary all of them come over in one copy and
are folded as Python floats, in order. So reading at other moments (another `log_every`, a checkpoint in
between) leaves every sum the same to the bit.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.metrics import Last, Max, Mean, Metrics, Min, Sum

__all__ = ["Pending", "Row", "Running", "read"]

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Last, Max, Mean, Min, Sum)}
_MOST_ENTRIES = 64  # of a metric that is a vector; larger ones are no numbers for a log

Row = dict[str, "Entry"]  # what one step returned, read


@dataclasses.dataclass(frozen=True)
class Entry:
    """A metric whose leaves are numbers (or tensors on the host, for kinds that are not ours).

    Attributes:
        kind: `Mean`, `Sum`, `Last`, `Max`, `Min`, or the name of another class.
        leaves: its fields.
        like: a metric of another class, built alike; `None` where it has not been seen yet.
    """

    kind: str
    leaves: tuple[Any, ...]
    like: Any = None

    def merge(self, other: Entry) -> Entry:
        """The metric over both; `other` came later."""
        a, b = self.leaves, other.leaves
        if self.kind in ("Mean", "Sum"):
            return Entry(self.kind, tuple(x + y for x, y in zip(a, b, strict=True)))
        if self.kind == "Last":
            return other
        if self.kind in ("Max", "Min"):
            x, y = a[0], b[0]
            pick = max if self.kind == "Max" else min
            return Entry(self.kind, (math.nan if math.isnan(x) or math.isnan(y) else pick(x, y),))
        treedef = tree.structure(other.like)
        merged = tree.unflatten(treedef, a).merge(tree.unflatten(treedef, b))
        return Entry(self.kind, tuple(tree.leaves(merged)), other.like)

    def values(self, name: str) -> dict[str, float]:
        """As flat numbers: one, or one for each entry of a short vector."""
        if self.kind == "Mean":
            total, weight = self.leaves
            return {name: total / weight if weight else math.nan}
        if self.kind in _KINDS:
            return {name: self.leaves[0]}
        if self.like is None:
            return {}
        value = tree.unflatten(tree.structure(self.like), self.leaves).value
        if value.ndim == 0:
            return {name: float(value)}
        if value.numel() > _MOST_ENTRIES:
            return {}
        return {f"{name}/{i}": float(x) for i, x in enumerate(value.reshape(-1).tolist())}

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "leaves": [_encode(leaf) for leaf in self.leaves]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Entry:
        return cls(content["kind"], tuple(_decode(leaf) for leaf in content["leaves"]))


@dataclasses.dataclass
class Running:
    """Metrics over a stretch of steps.

    Attributes:
        steps: how many.
        samples: rows.
        tokens: tokens.
        entries: `{name: Entry}`.
    """

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    entries: dict[str, Entry] = dataclasses.field(default_factory=dict)

    def add(self, row: Row) -> None:
        """One step's metrics, after all those before."""
        entries = self.entries
        for name, entry in row.items():
            before = entries.get(name)
            if before is not None and before.kind != entry.kind:
                raise ValueError(
                    f"metric {name!r} was a {before.kind} and is now a {entry.kind}; it must stay of "
                    "one kind"
                )
            entries[name] = entry if before is None else before.merge(entry)

    def values(self) -> dict[str, float]:
        """`{name: value}`."""
        found: dict[str, float] = {}
        for name, entry in self.entries.items():
            found |= entry.values(name)
        return found

    def to_json(self) -> dict[str, Any]:
        entries = {name: entry.to_json() for name, entry in self.entries.items()}
        return {
            "steps": self.steps,
            "samples": self.samples,
            "tokens": self.tokens,
            "entries": entries,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Running:
        entries = {name: Entry.from_json(entry) for name, entry in content["entries"].items()}
        return cls(content["steps"], content["samples"], content["tokens"], entries)


class Pending:
    """Steps' metrics that were not read yet; adding one waits for nothing."""

    def __init__(self) -> None:
        self._steps: list[Any] = []

    def append(self, metrics: Any) -> None:
        self._steps.append(metrics)

    def __len__(self) -> int:
        return len(self._steps)

    def drain(self) -> list[Row]:
        """All of them, read in one copy a device; nothing is pending afterwards."""
        steps, self._steps = self._steps, []
        return read(steps)


def read(steps: Sequence[Any]) -> list[Row]:
    """What some steps returned, as numbers: one copy from each device, however many there are.

    Args:
        steps: for each step a `Metrics`, or a mapping of names to metrics, 0-d tensors and numbers (those
            count as a `Mean` of weight one).
    """
    rows: list[dict[str, tuple[str, list[Any], Any]]] = []
    wanted: dict[tuple[torch.device, torch.dtype], list[tuple[list[Any], int]]] = {}
    for metrics in steps:
        row: dict[str, tuple[str, list[Any], Any]] = {}
        for name, metric in _entries(metrics):
            kind, leaves, like = _parts(name, metric)
            for i, leaf in enumerate(leaves):
                if isinstance(leaf, torch.Tensor):
                    if like is not None:
                        leaves[i] = leaf.detach().cpu()
                    else:
                        wanted.setdefault((leaf.device, leaf.dtype), []).append((leaves, i))
            row[name] = (kind, leaves, like)
        rows.append(row)
    for places in wanted.values():
        stacked = torch.stack([leaves[i].detach() for leaves, i in places])
        for (leaves, i), value in zip(places, stacked.tolist(), strict=True):
            leaves[i] = value
    return [
        _with_spread(
            {name: Entry(kind, tuple(leaves), like) for name, (kind, leaves, like) in row.items()}
        )
        for row in rows
    ]


def _entries(metrics: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(metrics, Metrics):
        return metrics.entries.items()
    if isinstance(metrics, Mapping):
        return ((str(name), value) for name, value in metrics.items())
    raise TypeError(
        "a step must return `(state, metrics)` with metrics a dict of 0-d tensors, numbers or metrics "
        f"such as ftrain.Mean(total, weight); found {type(metrics).__name__}"
    )


def _parts(name: str, metric: Any) -> tuple[str, list[Any], Any]:
    kind = type(metric).__name__
    if _KINDS.get(kind) is type(metric) and all(_is_number(leaf) for leaf in metric):
        return kind, list(metric), None
    if _is_number(metric):
        return "Mean", [metric, 1.0], None
    if callable(getattr(metric, "merge", None)) and not isinstance(metric, torch.Tensor):
        return kind, tree.leaves(metric), metric
    found = f"shape {tuple(metric.shape)}" if isinstance(metric, torch.Tensor) else repr(metric)
    raise TypeError(
        f"metric {name!r} must be a 0-d tensor, a number, or a metric such as ftrain.Mean(total, weight); "
        f"found {found}. Reduce it first: value.mean()."
    )


def _is_number(value: Any) -> bool:
    return value.ndim == 0 if isinstance(value, torch.Tensor) else isinstance(value, (int, float))


def _with_spread(row: Row) -> Row:
    """The smallest and the largest gradient norm beside the mean; skipped steps have none."""
    norm = row.get("grad_norm")
    if norm is None or norm.kind != "Mean" or not norm.leaves[1]:
        return row
    value = norm.leaves[0] / norm.leaves[1]
    return {**row, "grad_norm_min": Entry("Min", (value,)), "grad_norm_max": Entry("Max", (value,))}


def _encode(leaf: Any) -> Any:
    """A number as it is; a tensor by its bytes."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    data = leaf.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return {
        "dtype": str(leaf.dtype).removeprefix("torch."),
        "shape": list(leaf.shape),
        "bytes": base64.b64encode(data).decode(),
    }


def _decode(leaf: Any) -> Any:
    if not isinstance(leaf, Mapping):
        return leaf
    data = bytearray(base64.b64decode(leaf["bytes"]))
    return (
        torch.frombuffer(data, dtype=getattr(torch, leaf["dtype"])).clone().reshape(leaf["shape"])
    )
