"""Threefry-2x32 in plain tensor operations: the definition of every draw.

It runs on any device without a host sync. It is used if there is no kernel (other accelerators, no C
compiler, no NVRTC), and tests compare the kernels with it. All words are int32 tensors that hold the bit
patterns of uint32 (torch has few uint32 operations); additions wrap, `>>` is arithmetic and therefore
masked.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the layout of
counters and words is that of JAX with `jax_threefry_partitionable`.

Read next: `_operators.py`, which makes operators of these functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PARITY = 0x1BD11BDA
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))

#: The unsigned dtype of each width.
UINT = {8: torch.uint8, 16: torch.uint16, 32: torch.uint32, 64: torch.uint64}


def threefry2x32(key: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt the counters `(x0, x1)` under `key` in 20 rounds; `key[..., i]` broadcasts with them."""
    k0, k1 = key[..., 0], key[..., 1]
    schedule = (k0, k1, k0 ^ k1 ^ PARITY)
    x0, x1 = x0 + k0, x1 + k1  # makes new tensors, which the lines below modify in place
    for group in range(5):
        for r in ROTATIONS[group % 2]:
            x0 += x1
            low = x1 >> (32 - r)
            low &= (1 << r) - 1
            x1 <<= r
            x1 |= low
            x1 ^= x0
        x0 += schedule[(group + 1) % 3]
        x1 += schedule[(group + 2) % 3]
        x1 += group + 1
    return x0, x1


def fold(key: Tensor, folds: Sequence[int]) -> Tensor:
    """Return the keys `(..., 2)` after folding in each integer of `folds`, first to last."""
    for data in folds:
        low = torch.full((), signed(data), dtype=torch.int32, device=key.device)
        key = fold_in(key, low)
    return key


def fold_in(key: Tensor, data: Tensor) -> Tensor:
    """Return new keys `(..., 2)` from keys and the lower 32 bits of `data` `(...)`, broadcast."""
    x1 = low_word(data)
    x1 = x1.expand(broadcast(key.shape[:-1], x1.shape))
    return torch.stack(threefry2x32(key, torch.zeros_like(x1), x1), dim=-1)


def words(key: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the two words of counters 0 to `count - 1` under each key, both `(*batch, count)`."""
    if count <= 2**31:
        x1 = torch.arange(count, dtype=torch.int32, device=key.device)
        x0 = torch.zeros_like(x1)
    else:
        index = torch.arange(count, dtype=torch.int64, device=key.device)
        x0, x1 = (index >> 32).to(torch.int32), low_word(index)
    return threefry2x32(key.unsqueeze(-2), x0, x1)


def split(key: Tensor, folds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return new independent keys, `(*batch, *shape, 2)`."""
    key = fold(key, folds)
    pair = torch.stack(words(key, math.prod(shape)), dim=-1)
    return pair.reshape((*key.shape[:-1], *shape, 2))


def bits(key: Tensor, folds: Sequence[int], shape: Sequence[int], width: int) -> Tensor:
    """Return uniform words of 8, 16, 32 or 64 bits, `(*batch, *shape)`."""
    key = fold(key, folds)
    x0, x1 = words(key, math.prod(shape))
    if width == 64:
        out = (x0.to(torch.int64) << 32) | (x1.to(torch.int64) & 0xFFFFFFFF)
    elif width == 32:
        out = x0 ^ x1
    elif width == 16:  # converted to the signed type first: few devices convert to uint16
        out = (((x0 ^ x1) << 16) >> 16).to(torch.int16)
    else:
        out = ((x0 ^ x1) & 0xFF).to(torch.uint8)
    return out.view(UINT[width]).reshape((*key.shape[:-1], *shape))


def signed(word: int) -> int:
    """Return the int32 with the bit pattern of the lower 32 bits of `word`."""
    word &= 0xFFFFFFFF
    return word - 2**32 if word >= 2**31 else word


def low_word(data: Tensor) -> Tensor:
    """Return the lower 32 bits of an integer tensor, as int32."""
    if data.dtype == torch.uint32:
        return data.view(torch.int32)
    if data.dtype == torch.uint64:
        data = data.view(torch.int64)
    return data.to(torch.int32)  # an integer cast in torch keeps the lower bits, as in C


def broadcast(*shapes: Sequence[int]) -> torch.Size:
    """Return the shape that all shapes broadcast to; raise RuntimeError if they do not broadcast."""
    shape: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return shape
