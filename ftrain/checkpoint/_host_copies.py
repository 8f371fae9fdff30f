"""Copies of device tensors in pinned host memory; the host waits once, after it enqueued all copies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from ftrain.checkpoint import _tensors

__all__ = ["Events", "PinnedMemory", "computed", "to_host"]

Events = Mapping[torch.device, torch.cuda.Event]

# Torch rounds pinned allocations up to a power of two: with small pieces, little memory is unused.
_PIECE = 64 << 20
_ALIGNMENT = 64


class PinnedMemory:
    """Pinned host memory for copies of tensors; each new set of copies overwrites the previous set."""

    def __init__(self) -> None:
        self._pieces: list[torch.Tensor] = []

    def parts(self, sizes: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yield one uint8 tensor of pinned memory for each size in bytes."""
        left, index, begin = sum(map(_aligned, sizes)), -1, 0
        piece = torch.empty(0, dtype=torch.uint8)
        for size in sizes:
            if begin + size > piece.numel():
                index, begin = index + 1, 0
                piece = self._piece(index, max(size, min(left, _PIECE)))
            yield piece[begin : begin + size]
            begin, left = begin + _aligned(size), left - _aligned(size)

    def _piece(self, index: int, size: int) -> torch.Tensor:
        if index < len(self._pieces) and self._pieces[index].numel() >= size:
            return self._pieces[index]
        try:
            new = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            # The system limits pinned memory. Copies to pageable memory take longer, but work.
            new = torch.empty(size, dtype=torch.uint8)
        self._pieces[index : index + 1] = [new]
        return new


def computed(leaves: Iterable[torch.Tensor]) -> Events:
    """Record one CUDA event per device, after which the given tensors have been computed."""
    devices = {leaf.device for leaf in leaves if leaf.is_cuda}
    return {device: torch.cuda.current_stream(device).record_event() for device in devices}


def to_host(
    leaves: Sequence[torch.Tensor], memory: PinnedMemory, after: Events | None = None
) -> list[torch.Tensor]:
    """Return all leaves as CPU tensors with the same strides; copy those that are on other devices.

    Args:
        leaves: the tensors; those on the CPU are returned as they are.
        memory: receives the copies of leaves on CUDA devices.
        after: the result of `computed(leaves)` in the thread that computed the leaves: the copies are
            then made on new streams. `None`: on the current streams.
    """
    copies = list(leaves)
    on_cuda = [i for i, leaf in enumerate(leaves) if leaf.is_cuda and leaf.numel()]
    with torch.no_grad(), _streams(after or {}):
        sizes = [leaves[i].numel() * leaves[i].element_size() for i in on_cuda]
        for i, part in zip(on_cuda, memory.parts(sizes), strict=True):
            source = leaves[i].detach().resolve_conj().resolve_neg()
            flat = part.view(source.dtype)
            dense = _is_dense(source)
            strides = source.stride() if dense else _row_major(source.shape)
            copies[i] = flat.as_strided(source.shape, strides, flat.storage_offset())
            copies[i].copy_(source, non_blocking=True)
        for event in computed(leaves[i] for i in on_cuda).values():
            event.synchronize()
    return [_laid_out(copy, leaf) for copy, leaf in zip(copies, leaves, strict=True)]


@contextlib.contextmanager
def _streams(after: Events) -> Iterator[None]:
    """Run a `with` block on new CUDA streams, each of which first waits for its device's event."""
    with contextlib.ExitStack() as stack:
        for device, event in after.items():
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
            stream.wait_event(event)
            stack.enter_context(torch.cuda.stream(stream))
        yield


def _laid_out(copy: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """Move `copy` to the CPU, with the strides of `leaf`; return it as it is if `leaf` is on the CPU."""
    if leaf.is_cpu:
        return copy
    copy = copy.cpu()  # copies from devices other than CUDA, or without elements
    if copy.stride() == leaf.stride():
        return copy
    target = _tensors.empty(leaf.shape, leaf.stride(), leaf.dtype, torch.device("cpu"))
    _tensors.fill(target, copy)
    return target


def _is_dense(tensor: torch.Tensor) -> bool:
    """Return True if the elements fill a block of memory without gaps, in any order of the axes."""
    expected = 1
    for stride, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n != 1:
            if stride != expected:
                return False
            expected *= n
    return True


def _row_major(shape: Sequence[int]) -> list[int]:
    strides, size = [], 1
    for n in reversed(shape):
        strides.append(size)
        size *= n
    return strides[::-1]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
