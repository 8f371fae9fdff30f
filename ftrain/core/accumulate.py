r"""Micro-batches, which give the exact gradient of a large batch with the memory of a small one.

The gradient over micro-batches is $\sum_i \nabla t_i / \sum_i w_i$ with totals $t_i$ and weights $w_i$:
one division by the total weight. A mean of means would weight a token in a short micro-batch more than
one in a long micro-batch.

Read next: `_mean_loss.py`, which sums losses and their gradients with this.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch

from ftrain.core import tree
from ftrain.core._words import a_or_an, brief
from ftrain.core.compile._reader import static_key
from ftrain.core.metrics import BatchMean, Metrics, PerExample
from ftrain.core.scan import scan

__all__ = ["MicroBatches"]


@tree.register_dataclass
class MicroBatches:
    """Batch that the caller has cut into micro-batches, perhaps of different sizes.

    The only class whose entries are micro-batches: any other list or tuple is one batch, which
    `accumulate=k` cuts evenly along the first axis.

    Attributes:
        batches: batches of one structure; their sizes may differ (then they are not scanned over, and
            compile time grows with their number).
        weights: the weight of a loss or metric that has none of its own, `loss.mean()`, one positive
            number for each batch, such as its number of rows. Empty: each batch counts one. A
            `Mean(total, weight)` keeps its own weight.

    >>> batch = MicroBatches((torch.zeros(3, 2), torch.zeros(5, 2)), weights=(3, 5))
    """

    batches: tuple[Any, ...]
    weights: tuple[float, ...] = ()


class Sums(NamedTuple):
    """Losses or gradients summed over micro-batches, with their weight, buffers and metrics.

    Attributes:
        totals: the sum of losses, or of their gradients (in float32 or wider, times the loss scale).
        weight: 0-d; the divisor of `totals`.
        buffers: the buffers after the last micro-batch.
        metrics: the metrics, merged.
    """

    totals: Any
    weight: torch.Tensor
    buffers: Any
    metrics: Metrics


@dataclass(frozen=True)
class Stacked:
    """Micro-batches of equal shapes as one list of tensors with a leading axis of length `k`.

    A type of its own, since a batch may itself be a list or tuple.

    Attributes:
        tensors: the tensors, stacked.
        structure: the tree structure of a micro-batch.
        constants: the other leaves of a micro-batch, by their position among all leaves.
        k: the number of micro-batches.
        weights: the weights of `MicroBatches`.
    """

    tensors: list[torch.Tensor]
    structure: tree.TreeDef
    constants: dict[int, Any]
    k: int
    weights: tuple[float, ...] = ()

    def build(self, tensors: list[torch.Tensor]) -> Any:
        """Return the micro-batch that has `tensors` in place of the batch's tensors."""
        rows = iter(tensors)
        count = len(tensors) + len(self.constants)
        leaves = [self.constants[i] if i in self.constants else next(rows) for i in range(count)]
        with tree.withheld("a micro-batch"):
            return tree.unflatten(self.structure, leaves)

    def unstack(self) -> Separate:
        """Return the same micro-batches as separate batches."""
        batches = (self.build([x[i] for x in self.tensors]) for i in range(self.k))
        return Separate(tuple(batches), self.weights)


@dataclass(frozen=True)
class Separate:
    """One or more micro-batches whose shapes may differ, kept as separate batches."""

    batches: tuple[Any, ...]
    weights: tuple[float, ...] = ()

    @property
    def k(self) -> int:
        """The number of micro-batches."""
        return len(self.batches)

    def unstack(self) -> Separate:
        """Return `self`, because its micro-batches are separate already."""
        return self


#: `(buffers, key, batch, weight) -> Sums` of one micro-batch; `weight` is that of `MicroBatches`.
PartFn = Callable[[Any, torch.Tensor, Any, torch.Tensor | None], Sums]


def accumulate_micro_batches(
    of_part: PartFn, zeros: Any, buffers: Any, keys: torch.Tensor, parts: Stacked | Separate
) -> Sums:
    """Sum the results of `of_part` over micro-batches, which update the buffers one after another.

    Args:
        of_part: the function of one micro-batch.
        zeros: the initial totals.
        buffers: the buffers before the first micro-batch.
        keys: int32, shape (k, 2); the key of each micro-batch.
        parts: the micro-batches; `Separate` ones are looped over, `Stacked` ones are scanned over (one
            body in a compiled graph, whatever their number is).
    """
    dtype = common_dtype(zeros)
    weight = torch.zeros((), dtype=dtype, device=keys.device)
    weights = torch.tensor(parts.weights, dtype=dtype) if parts.weights else None

    def body(carry: Any, x: Any) -> tuple[Any, Metrics]:
        totals, weight, buffers = carry
        part_key, part, part_weight = x
        latest = of_part(buffers, part_key, part, part_weight)
        check_examples(latest.metrics, part)
        totals = tree.map(torch.add, totals, latest.totals)
        return (totals, weight + latest.weight, latest.buffers), latest.metrics

    start = (zeros, weight, buffers)
    if isinstance(parts, Separate):
        each = [None] * parts.k if weights is None else list(weights.unbind())
        first, *others = zip(keys.unbind(), parts.batches, each, strict=True)
        carry, metrics = body(start, first)
        for x in others:
            carry, latest = body(carry, x)
            metrics = metrics.merge(latest)
        totals, weight, buffers = carry
        return Sums(totals, weight, buffers, metrics)

    def scanned(carry: Any, x: Any) -> tuple[Any, Metrics]:
        part_key, tensors, part_weight = x
        x = (part_key, parts.build(tensors), part_weight)
        (totals, weight, buffers), metrics = body(carry, x)
        return (totals, weight.to(dtype), buffers), metrics

    (totals, weight, buffers), stacked = scan(scanned, start, (keys, parts.tensors, weights))
    return Sums(totals, weight, buffers, merged(stacked, parts.k))


def common_dtype(values: Any) -> torch.dtype:
    """Return the dtype to which the dtypes of all tensors in a tree promote."""
    dtypes: list[torch.dtype] = [x.dtype for x in tree.leaves(values)]
    return functools.reduce(torch.promote_types, dtypes)


def merged(stacked: Metrics, k: int) -> Metrics:
    """Merge, in order, the metrics of micro-batches that are stacked along a leading axis."""
    entries = stacked.entries
    each = {name: x for name, x in entries.items() if isinstance(x, PerExample)}
    # A carry of `scan` keeps its shapes.
    grown = {name: _in_order(x, k) for name, x in entries.items() if getattr(x, "grows", False)}
    others = Metrics({name: x for name, x in entries.items() if name not in {*each, *grown}})
    first = tree.map(lambda x: x[0], others)
    if k > 1:
        rest = tree.map(lambda x: x[1:], others)
        first, _ = scan(lambda before, latest: (before.merge(latest), ()), first, rest)
    joined = {name: type(x)(x.values.flatten(0, 1)) for name, x in each.items()}
    found = {**first.entries, **joined, **grown}
    return Metrics({name: found[name] for name in entries})


def _in_order(stacked: Any, k: int) -> Any:
    """Merge, in order, a metric of micro-batches that is stacked along a leading axis."""
    parts = (tree.map(lambda x, i=i: x[i], stacked) for i in range(k))
    return functools.reduce(lambda merged, latest: merged.merge(latest), parts)


def check_examples(metrics: Metrics, part: Any) -> None:
    """Raise unless the length of each `PerExample` metric is divisible by the number of rows.

    Raises:
        ValueError: a metric has another number of entries than a multiple of the rows.
    """
    named = {n: x.values for n, x in metrics.entries.items() if isinstance(x, PerExample)}
    if not named:
        return
    rows = {x.shape[0] for x in tree.leaves(part) if isinstance(x, torch.Tensor) and x.ndim}
    for name, values in named.items():
        if len(rows) == 1 and values.shape[0] % max(*rows, 1):
            raise ValueError(
                f"metric {name!r} is {brief(values)} of a micro-batch of {rows.pop()} rows: expected "
                "one entry for each row, because a tensor with axes is concatenated over micro-batches. "
                "Wrap it in the metric that says how it merges instead: ftrain.Last(x), ftrain.Sum(x), "
                "ftrain.Mean(x * n, torch.tensor(n))."
            )


def weighted(metric: Any, weight: torch.Tensor | None) -> Any:
    """Give `weight` to a mean that has no weight of its own; return any other metric unchanged."""
    if weight is None or type(metric) is not BatchMean:
        return metric
    weight = weight.to(metric.weight.dtype)
    return BatchMean(
        metric.total.to(sum_dtype(metric.total.dtype)) * weight, metric.weight * weight
    )


def safe_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return the divisor of a total: its weight, or 1 if the weight is 0."""
    return torch.where(weight == 0, torch.ones_like(weight), weight)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which values of `dtype` are summed: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def split_evenly(batch: Any, k: int) -> Stacked:
    """Cut a batch along the first axis into k parts: every leaf `[B, ...]` becomes `[k, B / k, ...]`.

    0-d tensors and constants (numbers and strings that are not entries of a list) go to every part.

    Raises:
        ValueError: k does not divide the batch, or the leaves disagree about its size.
        TypeError: the batch holds an object, a list of numbers or strings, or a nested or sparse tensor,
            which cannot be cut.
    """
    leaves, structure = tree.flatten(batch)
    if not all(map(_can_be_cut, leaves)):
        _refuse_layout(batch, k)
    sizes = {
        path: leaf.shape[0]
        for path, leaf in zip(tree.paths(batch), leaves, strict=True)
        if isinstance(leaf, torch.Tensor) and leaf.ndim
    }
    if not sizes:
        check_constants(batch, f"accumulate={k}")
        raise ValueError(
            f"accumulate={k}: expected a batch with a tensor whose first axis can be cut, got a batch "
            "without one. Pass the parts yourself: ftrain.MicroBatches((first, second, ...))."
        )
    (path, size), *others = sizes.items()
    for other, other_size in others:
        if other_size != size:
            raise ValueError(
                f"accumulate={k} cuts all tensors of a batch along their first axis: expected {size} "
                f"rows as in batch{path}, got {other_size} in batch{other}. Give them the same number "
                "of rows, or pass the parts yourself: ftrain.MicroBatches((first, second, ...))."
            )
    if size % k or size == 0:
        below, above = size - size % k, size + k - size % k
        fits = f"{below} or {above}" if below else f"{above}"
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        raise ValueError(
            f"accumulate={k} does not divide the batch: batch{path} has {size} rows. Use a batch of "
            f"{fits} rows, or set accumulate to one of {divisors or [1]}, or pass the parts yourself: "
            "ftrain.MicroBatches((first, second, ...))."
        )
    check_constants(batch, f"accumulate={k}")
    tensors = [
        leaf.reshape(k, size // k, *leaf.shape[1:]) if leaf.ndim else leaf.expand(k)
        for leaf in leaves
        if isinstance(leaf, torch.Tensor)
    ]
    return Stacked(tensors, structure, _constants(leaves), k)


def _can_be_cut(leaf: Any) -> bool:
    is_tensor = isinstance(leaf, torch.Tensor)
    return not is_tensor or (leaf.layout == torch.strided and not leaf.is_nested)


def _refuse_layout(batch: Any, k: int) -> NoReturn:
    """Raise for the first tensor that is nested or sparse."""
    named = zip(tree.paths(batch), tree.leaves(batch), strict=True)
    path, leaf = next((path, leaf) for path, leaf in named if not _can_be_cut(leaf))
    got = "a nested tensor" if leaf.is_nested else f"one of layout {leaf.layout}"
    raise TypeError(
        f"accumulate={k}: batch{path}: expected a strided tensor, whose first axis can be cut, got "
        f"{got}. Pass the parts yourself: ftrain.MicroBatches((first, second, ...))."
    )


def check_constants(batch: Any, what: str) -> None:
    """Raise if the batch holds Python values that may differ between rows, such as a list of labels.

    A list or tuple of numbers or strings may be a column of the batch, one entry a row.

    Args:
        batch: the batch to cut.
        what: the option that cuts the batch, for the message.
    """
    for path, leaf in zip(tree.paths(batch), tree.leaves(batch), strict=True):
        if not isinstance(leaf, (torch.Tensor, *_CONSTANTS)):
            raise TypeError(
                f"{what}: batch{path} is {a_or_an(type(leaf).__name__)}; expected a tensor, which can "
                "be cut into micro-batches. Make it a tensor, or capture it in the loss function."
            )
    column = _column(batch)
    if column is not None:
        path, values = column
        raise TypeError(
            f"{what}: batch{path} is {a_or_an(type(values).__name__)} of {len(values)} Python values, "
            "and only tensors can be cut into micro-batches. Write torch.tensor(...) of it where the "
            "batch is made, or capture it in the loss function."
        )


_CONSTANTS = (bool, int, float, complex, str, bytes)


def _constants(leaves: list[Any]) -> dict[int, Any]:
    return {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, torch.Tensor)}


def _column(batch: Any, path: str = "") -> tuple[str, Any] | None:
    """Return path and value of the first list or tuple of Python constants in a batch."""
    children = tree.one_level(batch)
    values = children.values()
    if type(batch) in (list, tuple) and values and all(isinstance(x, _CONSTANTS) for x in values):
        return path, batch
    found = (_column(child, path + step) for step, child in children.items())
    return next((column for column in found if column is not None), None)


def split_batch(batch: Any, k: int) -> Stacked | Separate:
    """Return the micro-batches of a batch: k equal parts, or the parts of a `MicroBatches` as given.

    Raises:
        ValueError: the number of `MicroBatches` is not a multiple of `accumulate`, or their structures
            differ.
        TypeError: `MicroBatches` of something other than a tuple or list of batches; or a batch that
            `split_evenly` cannot cut.
    """
    if not isinstance(batch, MicroBatches):
        return split_evenly(batch, k)
    if not isinstance(batch.batches, (tuple, list)):
        raise TypeError(
            "MicroBatches: expected a tuple of batches, got "
            f"{a_or_an(type(batch.batches).__name__)}. Write ftrain.MicroBatches((first, second))."
        )
    parts, weights = tuple(batch.batches), tuple(batch.weights)
    if weights and (len(weights) != len(parts) or not all(w > 0 for w in weights)):
        raise ValueError(
            f"MicroBatches: expected one positive weight for each of {len(parts)} batches, got "
            f"{weights}. Pass one number above 0 per batch."
        )
    if not parts or len(parts) % k:
        raise ValueError(
            f"MicroBatches: expected {k} batches or a multiple of {k}, since accumulate={k}, got "
            f"{len(parts)}. Pass a multiple of {k} batches."
        )
    for i, part in enumerate(parts[1:], 1):
        difference = tree.first_difference(part, parts[0])
        if difference is not None:
            raise ValueError(
                f"MicroBatches: batch {i} differs in structure from batch 0, {difference}. Give all "
                "batches the same structure."
            )
    flat = [tree.leaves(part) for part in parts]
    can_be_stacked = all(_can_be_cut(leaf) for leaves in flat for leaf in leaves) and all(
        _signature(leaves) == _signature(flat[0]) for leaves in flat[1:]
    )
    if not can_be_stacked:
        return Separate(parts, weights)
    columns = zip(*flat, strict=True)
    tensors = [torch.stack(column) for column in columns if isinstance(column[0], torch.Tensor)]
    structure = tree.structure(parts[0])
    return Stacked(tensors, structure, _constants(flat[0]), len(parts), weights)


def _signature(leaves: list[Any]) -> list[Any]:
    """Return shapes, dtypes, devices and constants of a micro-batch; if equal, they can be stacked."""
    return [
        (leaf.shape, leaf.dtype, leaf.device)
        if isinstance(leaf, torch.Tensor)
        else static_key(leaf)
        for leaf in leaves
    ]
