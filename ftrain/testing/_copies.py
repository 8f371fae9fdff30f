"""Copies of trees, so that a check can repeat a call with unchanged arguments.

Read next: `laws/_subject.py`, which defines the calls.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ftrain.core import _torch, tree

__all__ = ["copied"]

_ALIGNMENT = 64  # bytes; results of operators can depend on the alignment of a tensor


class _Memory(NamedTuple):
    """Copy of the part of a storage that several leaves share.

    Attributes:
        storage: the copy.
        start: the offset in bytes of the part in the original storage.
    """

    storage: torch.UntypedStorage
    start: int


def copied(values: Any) -> Any:
    """Return a tree with copies of its leaves.

    Two leaves that are the same object are the same object in the copy, and leaves that share memory
    share it in the copy too. Copied tensors have no autograd graph. Other leaves are deep-copied if
    possible.

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
    except Exception:  # cannot be copied, such as an open file: return the original
        return leaf


def _view(leaf: torch.Tensor, shared: dict[int, _Memory]) -> torch.Tensor:
    memory = shared.get(leaf.untyped_storage().data_ptr()) if _is_plain(leaf) else None
    if memory is None:
        return leaf.detach().clone()
    offset = leaf.storage_offset() - memory.start // leaf.element_size()
    new = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
    return new.set_(memory.storage, offset, leaf.shape, leaf.stride())


def _shared_memory(leaves: Sequence[Any]) -> dict[int, _Memory]:
    """Return `{address: copy}` for the storages that are shared by several leaves."""
    tensors = {id(leaf): leaf for leaf in leaves if _is_plain(leaf)}
    addresses = {key: leaf.untyped_storage().data_ptr() for key, leaf in tensors.items()}
    found = {}
    for address, count in Counter(addresses.values()).items():
        if count > 1:
            views = [tensors[key] for key, other in addresses.items() if other == address]
            found[address] = _memory_of(views)
    return found


def _memory_of(views: Sequence[torch.Tensor]) -> _Memory:
    """Copy the part of a storage that views cover, from their first byte to their last."""
    extents = [_extent(view) for view in views]
    start, end = min(first for first, _ in extents), max(last for _, last in extents)
    start -= start % _ALIGNMENT
    whole = torch.empty(0, dtype=torch.uint8, device=views[0].device)
    whole.set_(views[0].untyped_storage(), start, (end - start,), (1,))
    return _Memory(whole.clone().untyped_storage(), start)


def _extent(view: torch.Tensor) -> tuple[int, int]:
    """Return the byte offsets in its storage at which a view begins and ends (end excluded)."""
    size, first = view.element_size(), int(view.storage_offset())
    last = first + sum(
        (n - 1) * int(stride) for n, stride in zip(view.shape, view.stride(), strict=True)
    )
    return first * size, (last + 1) * size


def _is_plain(leaf: Any) -> bool:
    """Return True for a strided tensor with at least one element, all of them stored in memory."""
    return (
        type(leaf) in (torch.Tensor, torch.nn.Parameter)
        and leaf.layout == torch.strided
        and not leaf.is_meta
        and not _torch.is_wrapped(leaf)
        and not (leaf.is_conj() or leaf.is_neg())
        and leaf.numel() > 0
    )
