"""How much is in a batch: rows and tokens, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.accumulate import MicroBatches

__all__ = ["sizes"]

_TOKENS = ("tokens", "input_ids")


def sizes(batch: Any) -> tuple[int, int]:
    """`(samples, tokens)`: rows of the first tensor; elements of `batch["tokens"]` or `["input_ids"]`.

    These are counts for a log; no metric is weighed by them.

    >>> sizes({"tokens": torch.zeros(4, 16, dtype=torch.int64), "mask": torch.ones(4, 16)})
    (4, 64)
    """
    if isinstance(batch, MicroBatches):
        found = [sizes(part) for part in batch.batches]
        return sum(samples for samples, _ in found), sum(tokens for _, tokens in found)
    if not isinstance(batch, Mapping):
        return _rows(batch), 0
    tokens = next((batch[name] for name in _TOKENS if name in batch), None)
    samples = next((_rows(value) for value in batch.values() if _rows(value)), 0)
    return samples, tokens.numel() if isinstance(tokens, torch.Tensor) else 0


def _rows(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.size(0) if value.dim() else 0
    leaves = tree.leaves(value)
    return next(
        (leaf.size(0) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()), 0
    )
