"""Metrics that merge exactly over micro-batches, batches of different sizes, and ranks.

A metric is a monoid: a few tensors, a `merge`, and a `value`. A mean keeps its total and its weight, so
the mean over many batches is one division by the true weight, never a mean of means. A tensor with axes
among the metrics of a loss has one entry for each example: such values are concatenated.

Read next: `accumulate.py`, where the micro-batches' metrics are merged.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import torch

from ftrain.core import tree
from ftrain.core._kept_graph import kept
from ftrain.core._words import a_or_an, brief

__all__ = [
    "BatchMean",
    "Last",
    "Max",
    "Mean",
    "Metric",
    "Metrics",
    "Min",
    "PerExample",
    "Sum",
    "Unreduced",
    "as_metrics",
]


@runtime_checkable
class Metric(Protocol):
    """Protocol of a metric: `value`, and an associative `merge` (`self` comes before `other`).

    A class whose merged metrics have other shapes, because it concatenates, sets `grows = True`.
    """

    @property
    def value(self) -> torch.Tensor:
        """Return the metric as a tensor."""

    def merge(self, other: Any) -> Any:
        """Return the metric over the data of `self` followed by the data of `other`."""


class Mean(NamedTuple):
    r"""A weighted mean, `total / weight`.

    Attributes:
        total: 0-d, $\sum_i w_i x_i$.
        weight: 0-d, $\sum_i w_i$ (samples, tokens, the sum of a mask); not negative.

    As a loss, its weight is the divisor of the gradients: `Mean(loss.sum(), mask.sum())`. A part of a
    batch may have weight 0. A whole batch of weight 0, or less, has no mean: the step is skipped or
    raises as for a gradient that is not finite (`nonfinite="ignore"` takes the gradient of the total).

    Pass the sum itself: a mean over no samples is NaN, and so is `Mean(loss.mean() * n, n)` with n = 0.

    >>> a, b = Mean(torch.tensor(6.0), torch.tensor(3)), Mean(torch.tensor(2.0), torch.tensor(1))
    >>> a.merge(b).value
    tensor(2.)
    """

    total: torch.Tensor
    weight: torch.Tensor

    @property
    def value(self) -> torch.Tensor:
        """Return `total / weight`; NaN if the total weight is 0."""
        return self.total / self.weight

    def merge(self, other: Mean) -> Mean:
        """Return the mean over the data of `self` and `other`."""
        return type(self)(self.total + other.total, self.weight + other.weight)


class BatchMean(Mean):
    """A mean without a weight, such as `loss.mean()`; each batch has weight 1.

    Callers that know the batch sizes weight by those instead.

    >>> BatchMean(torch.tensor(3.0), torch.tensor(2)).value
    tensor(1.5000)
    """

    __slots__ = ()


class Sum(NamedTuple):
    """A total, such as the number of skipped steps or of tokens seen.

    Attributes:
        total: 0-d.
    """

    total: torch.Tensor

    @property
    def value(self) -> torch.Tensor:
        """Return the total."""
        return self.total

    def merge(self, other: Sum) -> Sum:
        """Return the sum of the totals of `self` and `other`."""
        return Sum(self.total + other.total)


class Last(NamedTuple):
    """The latest value, such as a learning rate or a loss scale.

    Attributes:
        latest: a tensor.
    """

    latest: torch.Tensor

    @property
    def value(self) -> torch.Tensor:
        """Return the latest value."""
        return self.latest

    def merge(self, other: Last) -> Last:
        """Return `other`, which holds the later value."""
        return other


class Max(NamedTuple):
    """The largest value seen.

    Attributes:
        largest: a tensor.
    """

    largest: torch.Tensor

    @property
    def value(self) -> torch.Tensor:
        """Return the largest value."""
        return self.largest

    def merge(self, other: Max) -> Max:
        """Return the larger of the values of `self` and `other`; NaN if one of them is NaN."""
        return Max(torch.maximum(self.largest, other.largest))


class Min(NamedTuple):
    """The smallest value seen.

    Attributes:
        smallest: a tensor.
    """

    smallest: torch.Tensor

    @property
    def value(self) -> torch.Tensor:
        """Return the smallest value."""
        return self.smallest

    def merge(self, other: Min) -> Min:
        """Return the smaller of the values of `self` and `other`; NaN if one of them is NaN."""
        return Min(torch.minimum(self.smallest, other.smallest))


class PerExample(NamedTuple):
    """Values of each example along the first axis: losses, predictions, ids.

    Micro-batches and batches are concatenated, so `accumulate=k` and the full batch give equal values. A
    tensor whose first axis does not count examples is wrapped in another metric: `Last(x)`, `Sum(x)`,
    `Mean(x * n, torch.tensor(n))`.

    Attributes:
        values: `(examples, ...)`, any dtype.

    Example:
        >>> a, b = PerExample(torch.tensor([1, 2])), PerExample(torch.tensor([3]))
        >>> a.merge(b).value
        tensor([1, 2, 3])
    """

    values: torch.Tensor

    @property
    def value(self) -> torch.Tensor:
        """Return the values of all examples, in their order."""
        return self.values

    def merge(self, other: PerExample) -> PerExample:
        """Return the values of `self`, then those of `other`, concatenated along the first axis.

        Raises:
            ValueError: the two differ in the shape of the values of one example.
        """
        mine, theirs = self.values, other.values
        if mine.shape[1:] != theirs.shape[1:]:
            raise ValueError(
                f"PerExample.merge concatenates along the first axis: expected {brief(mine)} in all but "
                f"the first axis, got {brief(theirs)}. Pad the tensors to one shape, or reduce them in "
                "the loss function."
            )
        return type(self)(torch.cat([mine, theirs]))


class Unreduced(PerExample):
    """`PerExample` made from a plain tensor with axes, which the loss may have forgotten to reduce."""

    __slots__ = ()


@tree.register_dataclass
class Metrics(Mapping[str, torch.Tensor]):
    """Named metrics, read like a dict of tensors; `merge` combines those of two batches.

    `metrics["loss"]` is a 0-d tensor on the device; nothing waits for it until it is printed. Nested
    dicts of a loss function have one flat name an entry, `metrics["head/accuracy"]`.

    Attributes:
        entries: `{name: Metric}`; a tensor instead of a metric counts as a loss function's would.

    >>> first = Metrics({"loss": Mean(torch.tensor(6.0), torch.tensor(3))})
    >>> second = Metrics({"loss": Mean(torch.tensor(2.0), torch.tensor(1))})
    >>> first.merge(second)["loss"]
    tensor(2.)
    """

    entries: dict[str, Any]

    def __getitem__(self, name: str) -> torch.Tensor:
        try:
            entry = self.entries[name]
        except KeyError:
            within = [other for other in self.entries if str(other).startswith(f"{name}/")]
            names = ", ".join(map(repr, within or self.entries)) or "none"
            raise KeyError(f"metrics: expected one of {names}, got {name!r}. Choose one.") from None
        value = entry if isinstance(entry, torch.Tensor) else entry.value
        assert isinstance(value, torch.Tensor)
        return value

    if not TYPE_CHECKING:  # hidden from mypy, which would accept any attribute name

        def __getattr__(self, name: str) -> NoReturn:
            entries = self.__dict__.get("entries", {})
            raise AttributeError(
                f"metrics are read by name: write metrics[{name!r}], not metrics.{name}."
                if name in entries
                else f"{type(self).__name__} has no attribute {name!r}",
                name=name,
                obj=self,
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Metrics({', '.join(f'{name}={brief(self[name])}' for name in self)})"

    def merge(self, other: Metrics) -> Metrics:
        """Merge each metric with the metric of the same name in `other`.

        Raises:
            ValueError: a name, or the kind of a metric, differs between the two.
        """
        if self.entries.keys() != other.entries.keys():
            only = [
                f"{sorted(names)} only in the {which}"
                for names, which in (
                    (self.entries.keys() - other.entries.keys(), "first"),
                    (other.entries.keys() - self.entries.keys(), "second"),
                )
                if names
            ]
            raise ValueError(
                f"metrics of two batches have different names: {'; '.join(only)}. A loss function must "
                "return the same metrics for every batch: give a metric that does not apply weight "
                "zero, Mean(total, weight=0)."
            )
        pairs = {
            name: (_bare(mine), _bare(other.entries[name])) for name, mine in self.entries.items()
        }
        for name, (mine, theirs) in pairs.items():
            if type(mine) is not type(theirs):
                raise ValueError(
                    f"metric {name!r}: expected {_kind(mine)} as in earlier batches, got "
                    f"{_kind(theirs)}. Return the same kind for every batch."
                )
        return Metrics({name: mine.merge(theirs) for name, (mine, theirs) in pairs.items()})

    def compute(self) -> dict[str, Any]:
        """Return all values as Python floats or nested lists; each value waits for the device."""
        return {name: float(x) if x.ndim == 0 else x.tolist() for name, x in self.items()}


def _kind(metric: Any) -> str:
    if type(metric) is BatchMean:
        return "a number"
    return "a tensor with axes" if type(metric) is Unreduced else a_or_an(type(metric).__name__)


def _bare(value: Any) -> Any:
    """Wrap a 0-d tensor in `BatchMean`, any other in `Unreduced`; return a metric unchanged."""
    if not isinstance(value, torch.Tensor):
        return value
    return BatchMean(value, torch.ones_like(value)) if value.ndim == 0 else Unreduced(value)


def as_metrics(values: Any, where: str, device: torch.device | None = None) -> Metrics:
    """Return the extra results of a loss function as `Metrics`.

    Dicts, lists and tuples may be nested: the names on the way are joined by `/`. A number or 0-d tensor
    becomes a `BatchMean`, a tensor with axes an `Unreduced`.

    Args:
        values: a mapping of names to tensors, numbers, metrics and nested mappings.
        where: the name of the loss function in messages.
        device: the device of the loss, to which numbers and 0-d tensors on the host go without a wait.

    Raises:
        TypeError: `values` is not a mapping, or an entry is neither a tensor, a number nor a metric.
        ValueError: two entries have one name.
    """
    if not isinstance(values, Mapping):
        raise TypeError(
            f"{where}: expected `loss` or `(loss, metrics)` with metrics a dict of 0-d tensors, got "
            f"{a_or_an(type(values).__name__)} as the second element. Write: return loss, {{'name': x}}."
        )
    found: dict[str, Metric] = {}
    for name, value in _flat(values.entries if isinstance(values, Metrics) else values):
        if name in found:
            raise ValueError(
                f"{where} returned two metrics named {name!r}: names of nested entries are joined by "
                "`/`. Rename one of them."
            )
        found[name] = _as_metric(name, value, where, device)
    return Metrics(found)


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested dicts, lists and tuples with joined names; keep metrics whole."""
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    for name, value in items:
        path = f"{prefix}{name}"
        inner = value.entries if isinstance(value, Metrics) else value
        if isinstance(inner, (Mapping, list, tuple)) and not _is_metric(inner):
            yield from _flat(inner, f"{path}/")
        else:
            yield path, value


def _is_metric(value: Any) -> bool:
    """Return True for a metric; unlike `isinstance` in Python 3.11, do not compute its value."""
    merges = callable(getattr(value, "merge", None)) and not isinstance(value, torch.Tensor)
    return merges and inspect.getattr_static(value, "value", None) is not None


def on_device(value: torch.Tensor | float, device: torch.device | None) -> torch.Tensor:
    """Return a number, or a 0-d CPU tensor, as a tensor on a device, without synchronizing with it.

    A copy from the host waits for the device, and cannot be part of a CUDA graph. Instead, a kernel on
    the device multiplies by the 0-d host tensor, whose value it gets as an argument.
    """
    if not isinstance(value, torch.Tensor):
        return torch.full((), float(value), dtype=torch.get_default_dtype(), device=device)
    if device is None or value.ndim or value.device.type != "cpu" or device.type == "cpu":
        return value
    return torch.ones((), dtype=value.dtype, device=device) * value


def _as_metric(name: str, value: Any, where: str, device: torch.device | None) -> Metric:
    if _is_metric(value):
        return tree.map(lambda x: _on_device_copy(x, device), value)  # type: ignore[no-any-return]
    if isinstance(value, (int, float, torch.Tensor)):
        value = on_device(value, device)
    if isinstance(value, torch.Tensor):
        if value.ndim:
            return Unreduced(kept(value).clone())
        if value.is_floating_point():
            return BatchMean(kept(value).clone(), torch.ones_like(value))
        if not value.is_complex():  # the sum of two bools would be a bool
            return _as_metric(name, value.to(torch.float32), where, device)
    raise TypeError(
        f"metric {name!r} returned by {where}: expected a real tensor, a number, or a metric such as "
        f"ftrain.Mean(total, weight), got {a_or_an(type(value).__name__)} {value!r}. Return a real 0-d "
        "tensor, value.mean() or value.abs(), or values of each example."
    )


def _on_device_copy(value: Any, device: torch.device | None) -> torch.Tensor:
    moved = on_device(value, device)
    return kept(moved).clone() if moved is value else kept(moved)
