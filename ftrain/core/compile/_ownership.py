"""Detection of other references to tensors of a donated state; such tensors are copied first.

When a state has been claimed, its containers are removed, and only the list of its leaves refers to the
tensors. Any other reference (a name, a dict, another state) increases a tensor's reference count; a view
or a NumPy array of the same memory increases the use count of its storage. A bare storage object is not
detected, nor is a leaf whose `.data` was set to other memory while a view of its former memory exists.

On 300 leaves this takes 1.3 times as long as comparing their addresses with those of the last call.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ftrain.core import _torch

__all__ = ["OwnedLeaves", "copy_of", "forget", "held_elsewhere", "known", "record", "storage_of"]

# The reference count inside a `map` of an object to which only the mapped list refers.
_ALONE: int = next(map(sys.getrefcount, [object()]))


class OwnedLeaves:
    """Leaves of a state, and their storages, to which only the state refers.

    Attributes:
        leaves: the tensors, in order.
        storages: the addresses of their storages.
    """

    def __init__(self, leaves: Sequence[torch.Tensor]) -> None:
        self.leaves = list(leaves)
        self.storages = frozenset(map(storage_of, leaves))
        # Weak references keep the counters of the storages, but not their memory.
        self._weak = [_weak(leaf) for leaf in leaves]
        self._addresses = [weak.cdata for weak in self._weak]
        self._uses = list(map(_torch.storage_use_count, self._addresses))
        self._alone = [_ALONE + 1] * len(self.leaves)  # one more reference, from `leaves`

    def is_of(self, tensors: Sequence[Any]) -> bool:
        """Return True if `tensors` begins with the recorded leaves (the same objects)."""
        return all(map(operator.is_, self.leaves, tensors))

    def held_elsewhere(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """Return the positions of leaves to which other objects refer; requires `is_of(tensors)`."""
        uses = list(map(_torch.storage_use_count, self._addresses))
        references = list(map(sys.getrefcount, tensors))
        del references[len(uses) :]
        if references == self._alone and uses == self._uses:
            return []
        counted = zip(references, uses, self._uses, strict=True)
        return [
            place
            for place, (count, now, before) in enumerate(counted)
            if count != _ALONE + 1 or now != before
        ]

    def take(self, tensors: Sequence[torch.Tensor], replaced: Sequence[int]) -> None:
        """Record `tensors[i]` as the leaf at position `i`, for each position in `replaced`."""
        for place in replaced:
            self.leaves[place] = tensors[place]
            self._weak[place] = _weak(tensors[place])
            self._addresses[place] = self._weak[place].cdata
            self._uses[place] = _torch.storage_use_count(self._addresses[place])
        if replaced:
            self.storages = frozenset(map(storage_of, self.leaves))


def held_elsewhere(tensors: Sequence[torch.Tensor], n: int, containers: int = 0) -> list[int]:
    """Return which of the first `n` tensors are referenced from outside of the list, by position.

    References from other containers are not counted, up to `containers` for each tensor.
    """
    references = list(map(sys.getrefcount, tensors))[:n]
    return [
        place
        for place, count in enumerate(references)
        if count > _ALONE + containers or _counts(tensors[place]) != _UNSHARED
    ]


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor with the same strides."""
    options: Any = {"dtype": tensor.dtype, "device": tensor.device}
    with torch.no_grad():
        return torch.empty_strided(tensor.shape, tensor.stride(), **options).copy_(tensor)


_known: dict[int, tuple[weakref.ref[Any], OwnedLeaves]] = {}


def record(state: Any, owned: OwnedLeaves) -> None:
    """Store the owned leaves of a state for as long as the state object exists."""
    place = id(state)
    _known[place] = (weakref.ref(state, lambda _: _known.pop(place, None)), owned)


def known(state: Any) -> OwnedLeaves | None:
    """Return the owned leaves that `record` stored for a state; `None` if it stored none."""
    entry = _known.get(id(state))
    return entry[1] if entry is not None and entry[0]() is state else None


def forget(state: Any) -> None:
    """Delete the owned leaves that `record` stored for a state."""
    _known.pop(id(state), None)


def storage_of(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's storage."""
    return tensor.untyped_storage().data_ptr()


def _weak(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]  # torch's


def _counts(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the use count of a tensor's storage, and the number of references to the storage object."""
    storage = tensor.untyped_storage()
    return _torch.storage_use_count(storage._cdata), sys.getrefcount(storage)


_UNSHARED = _counts(torch.empty(1))
