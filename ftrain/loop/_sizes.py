"""How much is in a batch: rows and tokens, from shapes alone."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.accumulate import MicroBatches

__all__ = ["sizes"]

_TOKENS = ("tokens", "input_ids")


def sizes(batch: Any) -> tuple[int, int]:
    """`(samples, tokens)`: rows of the first tensor; elements of `batch["tokens"]` or `["input_ids"]`.

    Counts for a log, and in an evaluation the weights of metrics that came without one.

    >>> sizes({"tokens": torch.zeros(4, 16, dtype=torch.int64), "mask": torch.ones(4, 16)})
    (4, 64)
    """
    if type(batch) is dict:  # the common case, at every step
        for value in batch.values():
            if isinstance(value, torch.Tensor) and value.dim():
                for name in _TOKENS:
                    if name in batch:
                        return value.size(0), batch[name].numel()
                return value.size(0), 0
    if isinstance(batch, MicroBatches):
        found = [sizes(part) for part in batch.batches]
        return sum(samples for samples, _ in found), sum(tokens for _, tokens in found)
    for leaf in tree.leaves(batch):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return leaf.size(0), 0
    return 0, 0
