"""Collectives on trees of tensors, which are sent in buckets of one dtype.

A collective has a latency that does not depend on its size. Tensors of one dtype are therefore copied
into one tensor, a bucket. A large tree has several buckets, all of which are sent before the first
result is waited for. Their sizes are those of torch's DistributedDataParallel: 1 MiB for the first of a
dtype, which a compiled step sends early in the backward pass, 25 MiB for others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._torch_collectives import Group, all_gather, all_reduce_each

__all__ = ["gathered", "summed"]

FIRST_BYTES, BUCKET_BYTES = 2**20, 25 * 2**20


def summed(values: Any, group: Group) -> Any:
    """Return the sum of a tree of tensors over ranks, the same bits on every rank."""
    leaves, structure = tree.flatten(values)
    buckets = list(_buckets(leaves))
    flat = [torch.cat([leaves[i].reshape(-1) for i in places]) for places in buckets]
    for places, total in zip(buckets, all_reduce_each(flat, group), strict=True):
        sizes = [leaves[i].numel() for i in places]
        for i, part in zip(places, torch.split(total, sizes), strict=True):
            leaves[i] = part.reshape(leaves[i].shape)
    return tree.unflatten(structure, leaves)


def gathered(values: Any, group: Group) -> Any:
    """Return a tree with the tensors of all ranks, stacked in rank order along a new leading axis.

    Args:
        values: a tree of tensors, with the same shapes and dtypes on every rank.
        group: the ranks.
    """
    leaves, structure = tree.flatten(values)
    sent = [_sendable(x) for x in leaves]
    for places in _buckets(sent, whole=True):
        flat = torch.cat([sent[i].reshape(-1) for i in places])
        sizes = [sent[i].numel() for i in places]
        for i, part in zip(places, torch.split(all_gather(flat, group), sizes, dim=1), strict=True):
            stacked = part.reshape(group.size, *sent[i].shape)
            leaves[i] = _received(stacked, leaves[i].dtype)
    return tree.unflatten(structure, leaves)


def _buckets(leaves: list[torch.Tensor], *, whole: bool = False) -> Iterator[list[int]]:
    """Yield the indices of the tensors in each bucket: tensors of one dtype, the last tensors first.

    With `whole`, all tensors of a dtype are one bucket.

    A backward pass computes the gradients of the last layers first, and parameters are often in the
    order of the layers.
    """
    by_dtype: dict[torch.dtype, list[int]] = {}
    for i in reversed(range(len(leaves))):
        by_dtype.setdefault(leaves[i].dtype, []).append(i)
    for places in by_dtype.values():
        bucket: list[int] = []
        size, limit = 0, FIRST_BYTES
        for i in places:
            bucket.append(i)
            size += leaves[i].numel() * leaves[i].element_size()
            if size >= limit and not whole:
                yield bucket
                bucket, size, limit = [], 0, BUCKET_BYTES
        if bucket:
            yield bucket


def _sendable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's values in a dtype that all backends send: gloo has no bool and no complex."""
    if tensor.dtype is torch.bool:
        return tensor.to(torch.uint8)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _received(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert a received tensor from the dtype in which it was sent back to its own dtype."""
    if dtype.is_complex:
        return torch.view_as_complex(tensor.contiguous())
    return tensor.to(dtype)
