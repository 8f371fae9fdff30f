"""Results of each micro-batch, so that any number of ranks can sum them in the same order.

Read next: `accumulate.py`, which adds each result to a sum at once.
"""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.accumulate import (
    PartFn,
    Separate,
    Stacked,
    Sums,
    check_examples,
    common_dtype,
)
from ftrain.core.scan import scan

__all__ = ["each_micro_batch"]


def each_micro_batch(
    of_part: PartFn, buffers: Any, keys: torch.Tensor, parts: Stacked | Separate
) -> Sums:
    """Call `of_part` on each micro-batch; return the results stacked along a new leading axis.

    Args:
        of_part: the function of one micro-batch.
        buffers: the buffers before each part: all parts start from the same ones.
        keys: int32, shape (k, 2); the key of each part.
        parts: `Separate` are looped over; `Stacked` ones are scanned over, even a single one: the bits
            of a compiled body do not depend on the number of parts.
    """

    def of_one(key: torch.Tensor, part: Any, weight: torch.Tensor | None) -> Sums:
        # In memory of its own: bits depend on the alignment of a part within a larger tensor.
        part = tree.map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, part)
        latest = of_part(buffers, key, part, weight)
        check_examples(latest.metrics, part)
        return latest._replace(weight=latest.weight.to(common_dtype(latest.totals)))

    weights = torch.tensor(parts.weights, dtype=torch.float64) if parts.weights else None
    if isinstance(parts, Separate):
        each = [None] * parts.k if weights is None else list(weights.unbind())
        found = list(map(of_one, keys.unbind(), parts.batches, each))
        stacked: Sums = tree.map(lambda *xs: torch.stack(xs), *found)
        return stacked

    def scanned(carry: Any, x: Any) -> tuple[Any, Sums]:
        part_key, tensors, part_weight = x
        return carry, of_one(part_key, parts.build(tensors), part_weight)

    _, stacked = scan(scanned, (), (keys, parts.tensors, weights))
    return stacked
