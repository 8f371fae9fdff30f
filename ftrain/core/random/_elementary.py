"""Exponentials, powers and the error function in float64, with the same bits on every device.

Math libraries differ between machines in the last bit. The functions here, like the logarithms of
`_normal.py`, use only operations whose rounding IEEE 754 defines, without fused multiply-adds. A device
without float64 uses torch's functions in float32.

Read next: `_normal.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ftrain.core.random._normal import _horner, _log, _log1p

_LOG2_E = 1.4426950408889634
# ln 2 in two pieces: the first has 32 bits, so that its product with an exponent is exact.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# Taylor series of exp: for |r| <= ln 2 / 2, the first omitted term is below 2^-57.
_SERIES = tuple(1.0 / math.factorial(n) for n in range(13, -1, -1))

# Moshier's erf (Cephes): x T(x²) / U(x²) below 1, else 1 - exp(-x²) P(x) / Q(x).
_T = (9.60497373987051638749, 90.0260197203842689217, 2232.00534594684319226,
      7003.32514112805075473, 55592.3013010394962768)  # fmt: skip
_U = (1.0, 33.5617141647503099647, 521.357949780152679795, 4594.32382970980127987,
      22629.0000613890934246, 49267.3942608635921086)  # fmt: skip
_P = (2.46196981473530512524e-10, 0.564189564831068821977, 7.46321056442269912687,
      48.6371970985681366614, 196.520832956077098242, 526.445194995477358631,
      934.528527171957607540, 1027.55188689515710272, 557.535335369399327526)  # fmt: skip
_Q = (1.0, 13.2281951154744992508, 86.7072140885989742329, 354.937778887819891062,
      975.708501743205489753, 1823.90916687909736289, 2246.33760818710981792,
      1656.66309194161350182, 557.535340817727675546)  # fmt: skip


def exp(x: Tensor) -> Tensor:
    """Return `exp(x)`, by reducing x to k ln 2 + r; 0 below -708 and infinity above 709.7."""
    if x.dtype != torch.float64:
        return x.exp()
    inside = x.clamp(-708.0, 709.7)
    k = (inside * _LOG2_E).round()
    r = (inside - k * _LN2_HIGH) - k * _LN2_LOW
    # 2^k in two factors: 2^1024 is not a float64
    half = (k / 2).floor()
    powers = [((n.to(torch.int64) + 1023) << 52).view(torch.float64) for n in (half, k - half)]
    value = _horner(_SERIES, r) * powers[0] * powers[1]
    value = torch.where(x < -708.0, 0.0, torch.where(x > 709.7, math.inf, value))
    return torch.where(x.isnan(), x, value)


def log(x: Tensor) -> Tensor:
    """Return `log(x)` for x >= 0: -infinity for 0, infinity for infinity, NaN for NaN."""
    value = _log(x.clamp_min(torch.finfo(x.dtype).tiny))
    value = torch.where(x > 0, value, -math.inf)
    return torch.where(x < math.inf, value, x)  # infinity and NaN


def log1p(x: Tensor) -> Tensor:
    """Return `log(1 + x)` for -1 <= x <= 0; -1 gives -infinity."""
    return torch.where(x > -1, _log1p(x.clamp_min(-1 + torch.finfo(x.dtype).eps / 2)), -math.inf)


def power(x: Tensor, exponent: Tensor | float) -> Tensor:
    """Return `x ** exponent` for x >= 0, as `exp(exponent log(x))`."""
    return exp(log(x) * exponent)


def erf(x: Tensor) -> Tensor:
    """Return the error function; plus or minus 1 beyond 6, where 1 - |erf(x)| is below 2^-54."""
    if x.dtype != torch.float64:
        return torch.erf(x)
    size = x.abs().clamp_max(6.0)
    square = size * size
    near = size * _horner(_T, square) / _horner(_U, square)
    far = 1.0 - exp(-square) * _horner(_P, size) / _horner(_Q, size)
    value = torch.where(size < 1.0, near, far)
    return torch.where(x < 0, -value, value)


def total(x: Tensor) -> Tensor:
    """Return the sum over the last dimension, added in pairs: the same bits for any number of rows."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        pairs = x[..., :half] + x[..., half : 2 * half]
        x = torch.cat([pairs, x[..., 2 * half :]], -1)
    return x.sum(-1)


def cumulative(x: Tensor) -> Tensor:
    """Return the running sums of the last dimension, added in the order of `jax.lax.cumsum` on a CPU.

    This is Blelloch's scan ("Prefix sums and their applications", 1990): it adds pairs of neighbours
    first, and derives the sums in between from these.
    """
    if x.shape[-1] < 2:
        return x
    odd = cumulative(x[..., 0:-1:2] + x[..., 1::2])
    before = odd[..., :-1] if x.shape[-1] % 2 == 0 else odd
    even = torch.cat([x[..., :1], before + x[..., 2::2]], -1)
    out = torch.empty_like(x)
    out[..., 0::2], out[..., 1::2] = even, odd
    return out
