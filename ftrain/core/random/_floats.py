"""Conversion of uniform random words (integers) to floats: mantissas, thresholds and ranges.

XLA on the CPU contracts `u * (maxval - minval) + minval` into one fused multiply-add in float32 and
float64. In float16 and bfloat16 it rounds each operation, except where the processor has fused
instructions for the dtype (AVX512-FP16) and the formula is jitted. On every device this file gives the
fused result in float32 and float64 and rounds each operation in float16 and bfloat16.

Read next: `threefry.c`, the same arithmetic in C.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache

import torch
from torch import Tensor

#: Bits drawn for one float of each dtype.
WIDTH = {torch.float16: 16, torch.bfloat16: 8, torch.float32: 32, torch.float64: 64}

_SPLITTER = 2.0**27 + 1.0  # Veltkamp: halves of 26 bits


def unit(raw: Tensor, dtype: torch.dtype) -> Tensor:
    """Return uniform floats in [0, 1): random words as mantissas of floats in [1, 2), minus 1."""
    if dtype == torch.float32:
        floats = ((raw.view(torch.int32) >> 9) & 0x007FFFFF) | 0x3F800000
    elif dtype == torch.float64:
        floats = ((raw.view(torch.int64) >> 12) & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000
    elif dtype == torch.float16:
        floats = ((raw.view(torch.int16) >> 6) & 0x03FF) | 0x3C00
    else:  # bfloat16: its seven mantissa bits come from 8-bit words
        floats = (raw.to(torch.int16) >> 1) | 0x3F80
    return floats.view(dtype) - 1.0


def below(raw: Tensor, p: float) -> Tensor:
    """Return True where the uniform float in [0, 1) of a 32-bit random word is less than `p`.

    The float is `u = k / 2^23`, so that `u < p` is computed as `k < ceil(p 2^23)`.
    """
    return ((raw.view(torch.int32) >> 9) & 0x007FFFFF) < threshold(p)


@lru_cache(maxsize=1024)
def threshold(p: float) -> int:
    """Return how many of the 2^23 float32 uniforms are below `p` (rounded to float32); 0 for NaN."""
    p32 = ctypes.c_float(p).value
    return min(max(math.ceil(p32 * 2.0**23), 0), 2**23) if math.isfinite(p32) else (p32 > 0) << 23


def scale(unit: Tensor, minval: Tensor, maxval: Tensor) -> Tensor:
    """Return `max(minval, unit * (maxval - minval) + minval)`, all of one dtype, rounded as in XLA."""
    minval = minval + 0.0  # avoids -0: machines differ in which zero a maximum returns
    span = maxval - minval
    if unit.dtype == torch.float32:
        # The product of two float32 is exact in float64; the sum is rounded to odd there, so that
        # rounding it again to float32 gives what a single rounding would (Boldo and Melquiond, 2008).
        exact = _sum_to_odd(unit.double() * span.double(), minval.double())
        floats = exact.to(torch.float32)
    elif unit.dtype == torch.float64:
        floats = _fma(unit, span, minval)
    else:
        floats = unit * span + minval
    return torch.maximum(minval, floats)


def _two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded sum and its rounding error (Knuth)."""
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _sum_to_odd(a: Tensor, b: Tensor) -> Tensor:
    """Return `a + b` in float64, rounded to odd: if inexact, the neighbour with last bit 1."""
    total, error = _two_sum(a, b)
    word = total.view(torch.int64)
    outward = (error > 0) == (total > 0)
    odd = torch.where(outward, word + 1, word - 1)
    return torch.where((error != 0) & ((word & 1) == 0), odd, word).view(torch.float64)


def _two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rounded product and its rounding error (Dekker)."""
    product = a * b
    a_split, b_split = a * _SPLITTER, b * _SPLITTER
    a_high, b_high = a_split - (a_split - a), b_split - (b_split - b)
    a_low, b_low = a - a_high, b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return `a * b + c` in float64 with a single rounding (Boldo and Melquiond, 2008)."""
    high, low = _two_product(a, b)
    c_high, c_low = _two_sum(c, low)
    total, error = _two_sum(high, c_high)
    return total + _sum_to_odd(c_low, error)
