"""Copies of trees, on which a check repeats a call.

Read next: `laws/_subject.py`, the calls.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ftrain.core import _torch, tree

__all__ = ["copied"]

_ALIGNMENT = 64  # bytes; bits depend on where in memory a tensor begins


class _Memory(NamedTuple):
    """Copy of the part of a storage that some leaves share.

    Attributes:
        storage: the copy.
        start: the first byte that was copied.
    """

    storage: torch.UntypedStorage
    start: int


def copied(values: Any) -> Any:
    """Return a tree with copies of its leaves.

    Leaves that are one object are one object in the copy, and leaves that share memory share memory.
    Tensors have no graph; leaves that are not tensors are deep copies where that is possible.

    >>> flat = torch.arange(4)
    >>> new = copied({"head": flat[:3], "tail": flat[1:]})
    >>> new["head"].fill_(7), new["tail"], flat
    (tensor([7, 7, 7]), tensor([7, 7, 3]), tensor([0, 1, 2, 3]))
    """
    leaves, treedef = tree.flatten(values)
    memo: dict[int, Any] = {}
    shared = _shared_memory(leaves)
    return tree.unflatten(treedef, [_copied(leaf, shared, memo) for leaf in leaves])


def _copied(leaf: Any, shared: dict[int, _Memory], memo: dict[int, Any]) -> Any:
    if isinstance(leaf, torch.Tensor):
        if id(leaf) not in memo:
            new = _view(leaf, shared)
            memo[id(leaf)] = new.requires_grad_() if leaf.requires_grad else new
        return memo[id(leaf)]
    try:
        return copy.deepcopy(leaf, memo)
    except (
        Exception
    ):  # an open file, a tensor with a graph inside of an object: it is passed itself
        return leaf


def _view(leaf: torch.Tensor, shared: dict[int, _Memory]) -> torch.Tensor:
    memory = shared.get(leaf.untyped_storage().data_ptr()) if _is_plain(leaf) else None
    if memory is None:
        return leaf.detach().clone()
    offset = leaf.storage_offset() - memory.start // leaf.element_size()
    new = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
    return new.set_(memory.storage, offset, leaf.shape, leaf.stride())


def _shared_memory(leaves: Sequence[Any]) -> dict[int, _Memory]:
    """Return a copy of each storage in which several leaves lie, by its address."""
    tensors = {id(leaf): leaf for leaf in leaves if _is_plain(leaf)}
    addresses = {key: leaf.untyped_storage().data_ptr() for key, leaf in tensors.items()}
    found = {}
    for address, count in Counter(addresses.values()).items():
        if count > 1:
            views = [tensors[key] for key, other in addresses.items() if other == address]
            found[address] = _memory_of(views)
    return found


def _memory_of(views: Sequence[torch.Tensor]) -> _Memory:
    """Copy the bytes of a storage from the first element of some views to the last one."""
    extents = [_extent(view) for view in views]
    start, end = min(first for first, _ in extents), max(last for _, last in extents)
    start -= start % _ALIGNMENT
    whole = torch.empty(0, dtype=torch.uint8, device=views[0].device)
    whole.set_(views[0].untyped_storage(), start, (end - start,), (1,))
    return _Memory(whole.clone().untyped_storage(), start)


def _extent(view: torch.Tensor) -> tuple[int, int]:
    """Return the first byte of a view in its storage, and the one after its last byte."""
    size, first = view.element_size(), int(view.storage_offset())
    last = first + sum(
        (n - 1) * int(stride) for n, stride in zip(view.shape, view.stride(), strict=True)
    )
    return first * size, (last + 1) * size


def _is_plain(leaf: Any) -> bool:
    """Return True for a tensor with elements, all of which are in memory of its own or of others."""
    return (
        type(leaf) in (torch.Tensor, torch.nn.Parameter)
        and leaf.layout == torch.strided
        and not leaf.is_meta
        and not _torch.is_wrapped(leaf)
        and not (leaf.is_conj() or leaf.is_neg())
        and leaf.numel() > 0
    )
