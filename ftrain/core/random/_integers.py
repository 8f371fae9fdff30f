"""Conversion of random words to integers in a range, and the number of sorts in a permutation.

All arithmetic is on int64 tensors, which wrap; unsigned 64-bit remainders are built from signed ones.

Read next: `sample.py`, which draws the words.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ftrain.core._torch import of_same_bits

_MASK = 0xFFFFFFFF

#: The supported dtypes, with their range and number of bits.
RANGE = {
    dtype: (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    for dtype in (
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    )
}
WIDTH = {dtype: torch.iinfo(dtype).bits for dtype in RANGE}


def between(high: Tensor, low: Tensor, base: Tensor, span: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `base + (2^n high + low) mod span` for n-bit words; `clipped` gives base and span.

    As in JAX, products are taken modulo 2^n. For spans above 2^(n / 2), the upper word therefore has a
    factor other than 2^n.
    """
    if WIDTH[dtype] == 64:
        a, b = (of_same_bits(word, torch.int64) for word in (high, low))
        factor = _remainder64(torch.full_like(span, 2**32), span)
        factor = _remainder64(factor * factor, span)  # 2^64 mod span; 0 for a span of 2^64
        offset = _remainder64(_remainder64(a, span) * factor + _remainder64(b, span), span)
        return of_same_bits(base + offset, dtype)
    a, b = (of_same_bits(word, torch.int32).to(torch.int64) & _MASK for word in (high, low))
    # A span of 2^32, stored as 0, needs no remainder: the lower word is the offset.
    safe = torch.where(span == 0, 1, span)
    factor = 2**16 % safe
    factor = (factor * factor & _MASK) % safe
    offset = ((a % safe) * factor + b % safe) & _MASK
    return (base + torch.where(span == 0, b, offset % safe)).to(dtype)


def sorting_rounds(count: int) -> int:
    """Return how many times a shuffle sorts by new random words to make ties improbable (XLA's rule)."""
    return math.ceil(3 * math.log(max(1, count)) / math.log(2**32 - 1))


def clipped(minval: int, maxval: int, dtype: torch.dtype) -> tuple[int, int]:
    """Clip bounds to a dtype's range; return the lower bound and the number of values modulo 2^n.

    Both are signed 64-bit words; n is 64 for 64-bit dtypes, else 32. An empty range counts as one value,
    `minval`. A maxval above the dtype's range includes its largest value.
    """
    lowest, highest = RANGE[dtype]
    base, end = (min(max(bound, lowest), highest) for bound in (minval, maxval))
    span = 1 if end <= base else (end - base + (maxval > highest)) % 2 ** max(32, WIDTH[dtype])
    return (base + 2**63) % 2**64 - 2**63, (span + 2**63) % 2**64 - 2**63


def clipped_tensors(
    minval: int | Tensor, maxval: int | Tensor, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the result of `clipped` as tensors, for bounds that are tensors (one of them or both)."""
    lowest, highest = RANGE[dtype]
    highest = min(highest, 2**63 - 1)
    least, most = (int64(bound, device) for bound in (minval, maxval))
    base, end = least.clamp(lowest, highest), most.clamp(lowest, highest)
    span = end - base + (most > highest)
    if WIDTH[dtype] < 64:
        span = span & _MASK
    return base, torch.where(end <= base, 1, span)


def int64(bound: int | Tensor, device: torch.device) -> Tensor:
    """Return a bound as an int64 tensor; raise for a tensor that int64 does not hold."""
    if not isinstance(bound, Tensor):
        return torch.full((), bound, dtype=torch.int64, device=device)
    if bound.dtype == torch.uint64 or bound.is_floating_point() or bound.is_complex():
        raise ValueError(
            f"randint: expected bounds to be ints or int64 tensors, got {bound.dtype}. Convert them: "
            ".long()."
        )
    return bound.to(torch.int64)


def _remainder64(a: Tensor, n: Tensor) -> Tensor:
    """Return `a mod n` for unsigned 64-bit integers stored as int64, where n = 0 means 2^64."""
    positive = torch.where(n > 0, n, 1)
    quotient = ((a >> 1) & (2**63 - 1)).div(positive, rounding_mode="trunc") << 1
    rest = a - quotient * positive  # the quotient is at most one too large
    rest = torch.where(_at_least(rest, positive), rest - positive, rest)
    large = torch.where(_at_least(a, n), a - n, a)  # n >= 2^63 fits at most once into a
    return torch.where(n > 0, rest, torch.where(n == 0, a, large))


def _at_least(a: Tensor, b: Tensor) -> Tensor:
    """Return `a >= b` for unsigned 64-bit integers stored as int64."""
    return torch.where((a ^ b) < 0, a < 0, a >= b)
