"""Memory that a call allocates, from the events of torch's allocator."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from ftrain.core._torch_dynamo import allocation_changes

__all__ = ["Allocated", "allocated", "live_bytes", "storage_bytes"]


class Allocated(NamedTuple):
    """Bytes that a call allocates, relative to the memory in use before it.

    Attributes:
        peak: the largest number of bytes held at one time.
        kept: the bytes held at the end of the call, its result included.
    """

    peak: int
    kept: int


def allocated(call: Callable[[], Any], device: torch.device | str = "cpu") -> Allocated:
    """Measure the bytes that a call allocates; release its result.

    On the CPU, memory that was allocated before the call counts as held until its end, because the
    profiler does not see its release.

    Example:
        >>> allocated(lambda: torch.empty(1000) + torch.empty(1000))
        Allocated(peak=12000, kept=4000)
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = call()
        torch.cuda.synchronize(device)
        after = torch.cuda.memory_allocated(device)
        del result
        return Allocated(torch.cuda.max_memory_allocated(device) - before, after - before)
    with _silenced(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    held = peak = 0
    for change in allocation_changes(profiler):
        held += change
        peak = max(peak, held)
    return Allocated(peak, held)


def storage_bytes(tensors: Iterable[Any]) -> int:
    """Return the total bytes of the storages of tensors; a shared storage counts once."""
    storages = {}
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def live_bytes() -> int:
    """Return the bytes of all tensors of this process that Python can reach, gradients included."""
    tensors = []
    for each in gc.get_objects():
        kind = type(each)  # `isinstance` would load lazy objects of other packages
        if issubclass(kind, torch.Tensor) and kind.__name__ != "FakeTensor":
            tensors.append(each)
            if each.is_leaf and each.grad is not None:
                tensors.append(each.grad)
    return storage_bytes(tensor for tensor in tensors if tensor.device.type != "meta")


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Suppress the lines that the profiler's native library prints at its start and end."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
