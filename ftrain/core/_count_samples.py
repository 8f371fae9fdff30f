"""Counts of the rows and tokens of a batch, computed from its shapes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core.accumulate import MicroBatches

__all__ = ["count_samples"]

_TOKENS = ("tokens", "input_ids")


def count_samples(batch: Any) -> tuple[int, int]:
    """Return the number of rows and the number of tokens of a batch, computed from its shapes.

    Samples are the rows of the first tensor, tokens the elements of `batch["tokens"]` or
    `batch["input_ids"]`. The log shows both; samples also weight metrics without a weight. Entries of a
    mapping and fields of a NamedTuple or dataclass are taken in their original order.

    Example:
        >>> count_samples({"tokens": torch.zeros(4, 16, dtype=torch.int64), "mask": torch.ones(4, 16)})
        (4, 64)
    """
    if type(batch) is dict:  # the common case, which occurs at every step
        for value in batch.values():
            if isinstance(value, torch.Tensor) and value.dim():
                for name in _TOKENS:
                    if name in batch:
                        return value.size(0), _numel(batch[name])
                return value.size(0), 0
    if isinstance(batch, MicroBatches):
        found = [count_samples(part) for part in batch.batches]
        return sum(samples for samples, _ in found), sum(tokens for _, tokens in found)
    entries = _entries(batch)
    tokens = next((_numel(entries[name]) for name in _TOKENS if name in entries), 0)
    return _rows(batch) or 0, tokens


def _rows(batch: Any) -> int | None:
    """Return the size of the first axis of the first tensor that is not 0-d; `None` without one."""
    if isinstance(batch, torch.Tensor):
        return batch.size(0) if batch.dim() else None
    children = _entries(batch) or tree.one_level(batch)
    found = map(_rows, children.values())
    return next((rows for rows in found if rows is not None), None)


def _entries(batch: Any) -> Mapping[str, Any]:
    """Return the values of a mapping, NamedTuple or dataclass by name, in order; `{}` for others."""
    if isinstance(batch, Mapping):
        return batch
    if isinstance(batch, tuple):
        return {name: getattr(batch, name) for name in getattr(batch, "_fields", ())}
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = (field.name for field in dataclasses.fields(batch))
        return {name: getattr(batch, name) for name in names if hasattr(batch, name)}
    return {}


def _numel(value: Any) -> int:
    return value.numel() if isinstance(value, torch.Tensor) else 0
