"""Conversion of uniform floats to normal ones, `sqrt(2) erfinv(u)`, with the same bits on every device.

It uses Giles' approximations ("Approximating the erfinv function", 2010), as XLA does: `torch.erfinv` is
off by up to 20,000 ulp in the tails of float32. Logarithms of math libraries differ between machines in
the last bit, so this file implements its own. All functions use only operations whose rounding IEEE 754
defines (`+ - * / sqrt`), without fused multiply-adds.

Read next: `threefry.c`, the same arithmetic in C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Giles' polynomials, highest power first: in `w - 2.5` for w < 5, in `sqrt(w) - 3` otherwise.
_CENTRE32 = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087,
             -0.00125372503, -0.00417768164, 0.246640727, 1.50140941)  # fmt: skip
_TAIL32 = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773,
           -0.0076224613, 0.00943887047, 1.00167406, 2.83297682)  # fmt: skip
# Polynomials in `w - 3.125` for w < 6.25, in `sqrt(w) - 3.25` for w < 16, in `sqrt(w) - 5` otherwise.
_CENTRE64 = (-3.64441206401782e-21, -1.6850591381820166e-19, 1.28584807152564e-18,
             1.1157877678025181e-17, -1.3331716628546209e-16, 2.0972767875968562e-17,
             6.6376381343583238e-15, -4.0545662729752069e-14, -8.1519341976054722e-14,
             2.6335093153082323e-12, -1.2975133253453532e-11, -5.4154120542946279e-11,
             1.0512122733215323e-09, -4.1126339803469837e-09, -2.9070369957882005e-08,
             4.2347877827932404e-07, -1.3654692000834679e-06, -1.3882523362786469e-05,
             0.00018673420803405714, -0.000740702534166267, -0.0060336708714301491,
             0.24015818242558962, 1.6536545626831027)  # fmt: skip
_MIDDLE64 = (2.2137376921775787e-09, 9.0756561938885391e-08, -2.7517406297064545e-07,
             1.8239629214389228e-08, 1.5027403968909828e-06, -4.013867526981546e-06,
             2.9234449089955446e-06, 1.2475304481671779e-05, -4.7318229009055734e-05,
             6.8284851459573175e-05, 2.4031110387097894e-05, -0.00035503752036284748,
             0.0009532893797373805, -0.0016882755560235047, 0.0024914420961078508,
             -0.0037512085075692412, 0.0053709145535900636, 1.0052589676941592,
             3.0838856104922208)  # fmt: skip
_TAIL64 = (-2.7109920616438573e-11, -2.5556418169965252e-10, 1.5076572693500548e-09,
           -3.789465440126737e-09, 7.61570120807834e-09, -1.496002662714924e-08,
           2.9147953450901081e-08, -6.7711997758452339e-08, 2.2900482228026655e-07,
           -9.9298272942317e-07, 4.5260625972231537e-06, -1.9681778105531671e-05,
           7.5995277030017761e-05, -0.00021503011930044477, -0.00013871931833623122,
           1.0103004648645344, 4.8499064014085844)  # fmt: skip

# Moshier's log1p (Cephes): x - x^2 / 2 + x^3 P(x) / Q(x). XLA uses it for |x| < sqrt(2) - 1, whose lower
# end is outside the range for which it was derived: there it is off by 129 ulp in float64, which makes
# normals differ by 31 ulp.
_NUMERATOR = (4.52700008624452e-05, 0.49854102823193375, 6.578732594206104, 29.911919328553072,
              60.94966798098779, 57.11296359058554, 20.039553499201283)  # fmt: skip
_DENOMINATOR = (1.0, 15.062909083469192, 83.04756596796722, 221.76239823732857, 309.09872225312057,
                216.42788614495947, 60.11866049760384)  # fmt: skip
_NEAR = math.sqrt(2.0) - 1.0

# ln 2 as a sum of two numbers: the first has so few bits that its product with an exponent is exact.
_LN2 = {
    torch.float32: (0.693145751953125, 1.42860682030941723e-06),
    torch.float64: (0.69314718036912381649, 1.9082149292705877e-10),
}
# Number of terms of the series of atanh: the first omitted term is below a quarter ulp on [0, 0.172].
_TERMS = {torch.float32: 6, torch.float64: 12}


def normal(unit: Tensor) -> Tensor:
    """Return standard normals from uniform floats in [0, 1)."""
    dtype = unit.dtype
    # This is `unit * (1 - lowest) + lowest`, in (-1, 1): `1 - lowest` rounds to 2, and the product is
    # exact.
    lowest = torch.finfo(dtype).eps / 2.0 - 1.0
    u = (unit * 2.0 + lowest).clamp(min=lowest)
    root2 = torch.full((), math.sqrt(2.0), dtype=dtype, device=unit.device)
    if dtype == torch.float64:
        return root2 * _erfinv64(u)
    return root2 * _erfinv32(u.float()).to(dtype)


def _erfinv32(x: Tensor) -> Tensor:
    w = -_log1p(x * -x)
    centre = _horner(_CENTRE32, w - 2.5)
    tail = _horner(_TAIL32, _sqrt(w) - 3.0)
    return torch.where(w < 5.0, centre, tail) * x


def _erfinv64(x: Tensor) -> Tensor:
    w = -_log1p(x * -x)
    centre = _horner(_CENTRE64, w - 3.125)
    root = _sqrt(w)
    middle = _horner(_MIDDLE64, root - 3.25)
    tail = _horner(_TAIL64, root - 5.0)
    return torch.where(w < 6.25, centre, torch.where(w < 16.0, middle, tail)) * x


def _horner(coefficients: Sequence[float], x: Tensor) -> Tensor:
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def _sqrt(x: Tensor) -> Tensor:
    """Return the correctly rounded square root of x >= 0, where x is 0 or far from underflow.

    `torch.sqrt` calls a vector function of MKL, which is off by 1 ulp for 15 % of float32 and 1 % of
    float64 numbers on an AMD EPYC without AVX-512. For float32, the root is computed in float64 and
    rounded once. For float64, one Newton step corrects it, whose residual x - r^2 is exact (Dekker, "A
    floating-point technique for extending the available precision", 1971).
    """
    if x.dtype == torch.float32:
        return x.double().sqrt().float()
    r = x.sqrt()
    scaled = r * 134217729.0  # 2^27 + 1 halves the bits
    high = scaled - (scaled - r)
    low = r - high
    square = r * r
    residual = (x - square) - (((high * high - square) + 2.0 * high * low) + low * low)
    return torch.where(x > 0.0, r + residual / (2.0 * r), r)


def _log1p(x: Tensor) -> Tensor:
    """Return `log(1 + x)` for -1 < x <= 0 as XLA does: a rational function near 0, else a logarithm."""
    x2 = x * x
    rational = x + (x2 * -0.5 + x * x2 * (_horner(_NUMERATOR, x) / _horner(_DENOMINATOR, x)))
    return torch.where(x > -_NEAR, rational, _log(1.0 + x))


def _log(x: Tensor) -> Tensor:
    """Return `log(x) = k ln 2 + 2 atanh(f / (2 + f))`, x = 2^k (1 + f), 1 + f in [2^-0.5, 2^0.5)."""
    word, mantissa = (torch.int32, 23) if x.dtype == torch.float32 else (torch.int64, 52)
    # After subtracting the word of sqrt(1/2), the bits above the mantissa are k.
    root_half = torch.full((), math.sqrt(0.5), dtype=x.dtype, device=x.device).view(word)
    offset = x.view(word) - root_half
    k = (offset >> mantissa).to(x.dtype)
    f = ((offset & ((1 << mantissa) - 1)) + root_half).view(x.dtype) - 1.0
    s = f / (2.0 + f)
    s2 = s * s
    series = _horner([2.0 / (2 * i + 1) for i in range(_TERMS[x.dtype], 0, -1)], s2) * s2
    high, low = _LN2[x.dtype]
    # 2 s + s series is computed as f - s (f - series), so that the division's rounding does not affect
    # the leading term.
    return k * high + ((f - s * (f - series)) + k * low)
