r"""Micro-batches: the gradient of a big batch from the memory of a small one, exactly.

The gradient over micro-batches is $\sum_i \nabla t_i / \sum_i w_i$ with totals $t_i$ and weights $w_i$:
one division by the true weight. A mean of means would count a token in a short micro-batch for more
than one in a long.

Read next: `gradients.py`, which wraps this into what a step needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ftrain.core import random, tree
from ftrain.core.metrics import Metrics
from ftrain.core.scan import scan

__all__ = ["MicroBatches"]


@tree.register_dataclass
class MicroBatches:
    """A batch that comes in parts, for when an even cut along the first axis is not what is wanted.

    Attributes:
        batches: batches of one structure; their sizes may differ (then they are not scanned over, and
            compile time grows with their number).

    >>> batch = MicroBatches((torch.zeros(3, 2), torch.zeros(5, 2)))
    """

    batches: tuple[Any, ...]


class Micro(NamedTuple):
    """What one micro-batch gives.

    Attributes:
        grads: gradients of its *mean* loss, times the loss scale (a sum would overflow float16).
        weight: float32, 0-d; its share in the whole.
        buffers: the buffers after it.
        metrics: its metrics.
    """

    grads: Any
    weight: torch.Tensor
    buffers: Any
    metrics: Metrics


class Accumulated(NamedTuple):
    """What all micro-batches give together.

    Attributes:
        totals: weighted sum of the gradients, in float32 or wider, times the loss scale.
        weight: float32, 0-d; what `totals` is to be divided by; `None` where that is done.
        buffers: the buffers after the last.
        metrics: the metrics, merged.
    """

    totals: Any
    weight: torch.Tensor | None
    buffers: Any
    metrics: Metrics


MicroStep = Callable[[Any, torch.Tensor, Any], Micro]  # (buffers, key, batch) -> Micro


def accumulate_micro_batches(
    micro: MicroStep, params: Any, buffers: Any, key: torch.Tensor, parts: list[Any] | Any, k: int
) -> Accumulated:
    """Run `micro` over the parts in order; buffers thread through, each part has a key of its own.

    Args:
        micro: one micro-batch's forward and backward pass.
        params: what the gradients look like.
        buffers: the buffers before the first part.
        key: int32, shape (2,).
        parts: a list of batches (looped over), or a tree whose leaves have a leading axis of length k
            (scanned over: one body in a compiled graph, whatever k is).
        k: how many.
    """
    keys = random.split(key, k)
    zeros = tree.map(lambda p: torch.zeros_like(p, dtype=wide(p.dtype)), params)
    double = any(p.dtype == torch.float64 for p in tree.leaves(params))
    nothing = torch.zeros(
        (), dtype=wide(torch.float64 if double else torch.float32), device=key.device
    )
    start = (zeros, nothing, buffers)

    def body(carry: Any, x: Any) -> tuple[Any, Metrics]:
        totals, weight, buffers = carry
        part_key, part = x
        found = micro(buffers, part_key, part)
        share = safe_weight(found.weight)
        totals = tree.map(lambda t, g: t + g.to(t.dtype) * share, totals, found.grads)
        return (totals, (weight + found.weight).to(weight.dtype), found.buffers), found.metrics

    if isinstance(parts, list):
        carry, metrics = body(start, (keys[0], parts[0]))
        for part_key, part in zip(keys[1:], parts[1:], strict=True):
            carry, latest = body(carry, (part_key, part))
            metrics = metrics.merge(latest)
    else:
        carry, stacked = scan(body, start, (keys, parts))
        first = tree.map(lambda x: x[0], stacked)
        rest = tree.map(lambda x: x[1:], stacked)
        metrics, _ = scan(lambda merged, latest: (merged.merge(latest), ()), first, rest)
    totals, weight, buffers = carry
    return Accumulated(totals, weight, buffers, metrics)


def each_part(batch: Any, k: int, key: torch.Tensor) -> tuple[list[torch.Tensor], list[Any]]:
    """The keys and the parts that `accumulate_micro_batches` goes through, one by one."""
    parts, k = parts_of(batch, k)
    if not isinstance(parts, list):
        stacked = parts
        parts = [tree.map(lambda x, i=i: x[i], stacked) for i in range(k)]
    return list(random.split(key, k).unbind()), parts


def safe_weight(weight: torch.Tensor) -> torch.Tensor:
    """The weight where there is any, else 1: what a micro-batch's total is scaled down by."""
    return torch.where(weight == 0, torch.ones_like(weight), weight)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are taken in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def cut(batch: Any, k: int) -> Any:
    """A batch cut along the first axis into k parts: every leaf `[B, ...]` becomes `[k, B / k, ...]`.

    0-d leaves and what is no tensor go to every part.

    Raises:
        ValueError: k does not divide the batch, or the leaves disagree about its size.
    """
    sizes = {
        path: leaf.shape[0]
        for path, leaf in zip(tree.paths(batch), tree.leaves(batch), strict=True)
        if isinstance(leaf, torch.Tensor) and leaf.ndim
    }
    if not sizes:
        raise ValueError(f"accumulate={k} needs a batch with a first axis to cut; it has none")
    (path, size), *others = sizes.items()
    for other, other_size in others:
        if other_size != size:
            raise ValueError(
                f"accumulate={k} cuts a batch along its first axis, but batch{path} has {size} rows "
                f"and batch{other} has {other_size}. Hand over ftrain.MicroBatches((...)) instead."
            )
    if size % k or size == 0:
        below, above = size - size % k, size + k - size % k
        fits = f"{below} or {above}" if below else f"{above}"
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        raise ValueError(
            f"accumulate={k} does not divide the batch: batch{path} has {size} rows. Use a batch of "
            f"{fits} rows, or accumulate one of {divisors or [1]}, or hand the parts over yourself: "
            "ftrain.MicroBatches((first, second, ...))."
        )

    def split_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(
                f"accumulate={k}: the batch holds {type(leaf).__name__} {leaf!r}; only tensors can be "
                "cut into micro-batches. Make it a tensor or capture it in the loss function."
            )
        if leaf.ndim == 0:
            return leaf.expand(k)
        return leaf.reshape(k, size // k, *leaf.shape[1:])

    return tree.map(split_leaf, batch)


def parts_of(batch: Any, k: int) -> tuple[Any, int]:
    """The parts of a batch and their number, as `accumulate_micro_batches` wants them.

    Raises:
        ValueError: `MicroBatches` of no multiple of `accumulate`, or of different structures.
    """
    if not isinstance(batch, MicroBatches):
        return cut(batch, k), k
    parts = list(batch.batches)
    if not parts or len(parts) % k:
        raise ValueError(
            f"MicroBatches holds {len(parts)} batches, but accumulate={k}: it takes {k}, or a multiple"
        )
    for i, part in enumerate(parts[1:], 1):
        difference = tree.first_difference(parts[0], part)
        if difference is not None:
            raise ValueError(f"MicroBatches: batch {i} differs from batch 0 {difference}")
    for path, leaf in zip(tree.paths(batch), tree.leaves(batch), strict=True):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(f"batch{path} is {type(leaf).__name__} {leaf!r}, not a tensor")
    signatures = {
        tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in tree.leaves(part)) for part in parts
    }
    if len(signatures) > 1:
        return parts, len(parts)
    return tree.map(lambda *leaves: torch.stack(leaves), *parts), len(parts)
