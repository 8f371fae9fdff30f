"""Packing and padding of sequences under `torch.vmap`.

`torch._pack_padded_sequence` and `torch._pad_packed_sequence` are in torch 1.0 and later; without them,
packed sequences cannot be mapped over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ftrain.core._torch import inside_vmap

__all__ = ["PACKING"]


def pack_padded_sequence(
    input: Tensor, lengths: Tensor, batch_first: bool
) -> tuple[Tensor, Tensor]:
    """Pack sequences step by step, since torch's own packing has no batching rule (torch 2.13)."""
    if not inside_vmap():
        return torch._pack_padded_sequence(input, lengths, batch_first)
    longest: list[int] = lengths.tolist()  # sorted by descending length
    sizes = [sum(length > step for length in longest) for step in range(longest[0])]
    steps = input.transpose(0, 1) if batch_first else input
    data = torch.cat([steps[step, :size] for step, size in enumerate(sizes)])
    return data, torch.tensor(sizes)


def pad_packed_sequence(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    """Pad packed sequences step by step, since torch's own padding has no batching rule (torch 2.13)."""
    if not inside_vmap():
        return torch._pad_packed_sequence(
            data, batch_sizes, batch_first, padding_value, total_length
        )
    sizes: list[int] = batch_sizes.tolist()
    after = [0] * (total_length - len(sizes))  # total_length is at most 0 if the caller passed none
    rows = torch.split(data, sizes + after)
    edges = [0, 0] * (data.dim() - 1)
    padded = torch.stack(
        [
            torch.nn.functional.pad(row, [*edges, 0, sizes[0] - len(row)], value=padding_value)
            for row in rows
        ],
        1 if batch_first else 0,
    )
    return padded, torch.tensor([sum(size > row for size in sizes) for row in range(sizes[0])])


#: The replacement of each of torch's two functions.
PACKING: dict[Any, Callable[..., Any]] = {
    torch._pack_padded_sequence: pack_padded_sequence,
    torch._pad_packed_sequence: pad_packed_sequence,
}
