"""Private torch APIs: use counts of storages, the number of tensors, views and arrays that share each.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["storage_use_count", "use_counts_check"]

# Use count of a storage, by its address: 0.05 µs (2.5 and later; before, only in builds for CUDA).
# Without it, views of a donated state's tensors are not detected.
storage_use_count: Callable[[int], int] = getattr(torch._C, "_storage_Use_Count", lambda address: 1)

# Fewer counts are read one by one, since NumPy takes 0.7 µs for any number.
_FEW = 16


def use_counts_check(addresses: Sequence[int], uses: Sequence[int]) -> Callable[[], bool]:
    """Return a function that returns True if the storages at `addresses` have the use counts `uses`.

    It reads all counts in one indexing operation on memory, 3 ns for each (`c10::intrusive_ptr_target`,
    in which the count is the first word, 2.1 to 2.13 at least). Where the count is elsewhere, which is
    tested at import, it asks torch for each.

    Args:
        addresses: of storages that stay allocated, because weak references to them exist.
        uses: the counts to compare with.
    """
    if len(addresses) < _FEW or not _COUNTS_ARE_WORDS:
        expected = list(uses)
        return lambda: list(map(storage_use_count, addresses)) == expected
    return _words_check(addresses, uses)


class _Memory:
    """Memory from an address on as 32-bit words, for `np.asarray`."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "data": (address, True),
            "shape": (nbytes // 4,),
            "typestr": "<u4",
            "version": 3,
        }


def _words_check(addresses: Sequence[int], uses: Sequence[int]) -> Callable[[], bool]:
    first = min(addresses)
    words = np.asarray(_Memory(first, max(addresses) + 16 - first))
    # The count comes after the pointer to the table of virtual functions.
    places = (np.array(addresses, np.int64) - first + 8) // 4
    expected = np.array(uses, "<u4").tobytes()
    return lambda: bool(words[places].tobytes() == expected)


def _counts_are_words() -> bool:
    """Return True if the count of a storage is the 32-bit word 8 bytes after the storage's address."""
    tensors = [torch.empty(1, device="cpu") for _ in range(3)]
    views = [tensors[i].view(1) for i in (1, 2, 2)]
    weak = [StorageWeakRef(each.untyped_storage()) for each in tensors]  # type: ignore[no-untyped-call]
    addresses = [each.cdata for each in weak]
    uses = list(map(storage_use_count, addresses))
    same = _words_check(addresses, uses)
    if len(set(uses)) != 3 or not same():
        return False
    views.pop()
    return not same()


_COUNTS_ARE_WORDS = _counts_are_words()
