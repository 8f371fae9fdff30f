"""Transfer of batches to a device, which overlaps with the computation on the previous batch."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ftrain.core import tree
from ftrain.data.cursor import Cursor

Item = tuple[Any, Cursor]


def transferred(items: Iterator[Item], device: torch.device, ahead: int) -> Iterator[Item]:
    """Yield the batches, moved to `device`; on CUDA, copy up to `ahead` batches in advance."""
    if device.type != "cuda":
        return ((tree.map(lambda leaf: _to(leaf, device), batch), after) for batch, after in items)
    return _through_pinned_memory(items, device, ahead)


def _through_pinned_memory(
    items: Iterator[Item], device: torch.device, ahead: int
) -> Iterator[Item]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: collections.deque[tuple[Any, Cursor, torch.cuda.Event]] = collections.deque()

    def send(item: Item) -> None:
        batch, after = item
        with torch.cuda.stream(stream):
            sent = tree.map(lambda leaf: _to(_pinned(leaf), device), batch)
            waiting.append((sent, after, stream.record_event()))

    def receive() -> Item:
        batch, after, copied = waiting.popleft()
        here = torch.cuda.current_stream(device)
        here.wait_event(copied)
        for leaf in tree.leaves(batch):
            if isinstance(leaf, Tensor):
                leaf.record_stream(here)  # the memory was allocated on the copy stream
        return batch, after

    for item in items:
        send(item)
        if len(waiting) > ahead:
            yield receive()
    while waiting:
        yield receive()


def _pinned(leaf: Any) -> Any:
    return leaf.pin_memory() if isinstance(leaf, Tensor) and leaf.device.type == "cpu" else leaf


def _to(leaf: Any, device: torch.device) -> Any:
    return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf
