"""Samplers that may need several draws for each element, with the keys and the arithmetic of JAX.

A gamma element has a key of its own, `split(key, n)[i]`, and derives new keys from it until a proposal
is accepted. A Poisson element reads element i of each round's array. Each element is therefore
independent of the number of rounds that other elements need, and each row of a vmap equals the draw from
its own key. `keyed` uses the samplers of `_rejection.py`, whose draws differ from JAX's: they have one
key for each call instead of one for each element.

These run inside operators (`_jax_families.py`), on plain tensors. Arithmetic is in the dtype of the
parameters, as in JAX, since a test in another precision would accept other proposals.

Read next: `_jax_families.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ftrain.core.random import _elementary, _normal, _operators

Ints = Sequence[int]

# A round of gamma accepts with probability 0.95 or more, a round of Poisson with 0.7 or more.
_MOST_ROUNDS = 1000
_SQUEEZE = 0.0331
# Lanczos' coefficients for g = 7 and n = 9.
_LANCZOS = (0.99999999999980993, 676.52036812188510, -1259.1392167224029, 771.32342877765308,
            -176.61502916214059, 12.507343278686905, -0.13857109526572012, 9.9843695780195716e-06,
            1.5056327351493116e-07)  # fmt: skip
_KNUTH = 10.0  # below this rate, Poisson draws multiply uniforms


def gamma(key: Tensor, folds: Ints, alpha: Tensor, log_space: bool) -> Tensor:
    """Return Gamma(alpha, 1) samples or their logarithms, for keys `(*batch, 2)`.

    Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 26 (2000); below 1,
    Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha).
    """
    shape = alpha.shape[key.ndim - 1 :]
    keys = _operators._split(key, folds, (math.prod(shape),)).reshape(-1, 2)
    flat = alpha.reshape(-1)
    is_boosted = ~(flat >= 1)  # NaN as well
    boosted = torch.where(is_boosted, flat + 1, flat)
    d = boosted - torch.full((), 1.0 / 3.0, dtype=flat.dtype, device=flat.device)
    c = torch.full_like(d, 1.0 / 3.0) / _square_root(d)

    is_valid = (flat >= 0) & (flat < math.inf)
    cube = torch.full_like(d, math.nan)
    left = is_valid.nonzero().squeeze(1)
    own = _operators._fold(keys, (0,))[left]
    for _ in range(_MOST_ROUNDS):
        if not left.numel():
            break
        square, v = _proposal(own, c[left])
        u = _operators._uniform(own, (2,), (), flat.dtype, 0.0, 1.0)
        bound = square * 0.5 + d[left] * ((1.0 - v) + _elementary.log(v))
        rejected = (u >= 1.0 - _SQUEEZE * square * square) & (_elementary.log(u) >= bound)
        cube[left] = v  # rejected elements get another value in the next round
        left, own = left[rejected], _operators._fold(own[rejected], (0,))
    _raise_if_any(left, flat, "gamma")

    u = _operators._uniform(keys, (1,), (), flat.dtype, 0.0, 1.0)
    if log_space:
        log_u = _elementary.log1p(-u)
        boost = torch.where(is_boosted & (log_u != 0), log_u * (1.0 / flat), 0.0)
        sample = (_elementary.log(d) + _elementary.log(cube)) + boost
    else:
        wide = torch.float64 if flat.device.type != "mps" else flat.dtype
        power = _elementary.power((1.0 - u).to(wide), (1.0 / flat).to(wide)).to(flat.dtype)
        sample = d * cube * torch.where(is_boosted, power, 1.0)
    return torch.where(is_valid, sample, math.nan).view(alpha.shape)


def poisson(key: Tensor, folds: Ints, rate: Tensor) -> Tensor:
    """Return Poisson samples of float32 rates, as float32, for keys `(*batch, 2)`.

    Rates below 10 use Knuth's product of uniforms ("The Art of Computer Programming" 2, 3.4.1), others
    use transformed rejection (Hörmann, "The transformed rejection method for generating Poisson random
    variables", Insurance: Mathematics and Economics 12, 1993).
    """
    shape = (key[..., 0].numel(), math.prod(rate.shape[key.ndim - 1 :]))
    keys, rates = _operators._fold(key, folds).reshape(-1, 2), rate.reshape(shape)
    small = rates < _KNUTH
    knuth = _knuth(keys, torch.where(small, rates, 0.0))
    # JAX also runs the rejection for elements that use Knuth's method, with a rate of 1e5, which can add
    # rounds.
    rejection = knuth.clone()
    rows = (~small).any(1).nonzero().squeeze(1)
    rejection[rows] = _transformed_rejection(keys[rows], torch.where(small, 1e5, rates)[rows])
    sample = torch.where(rates == 0, 0.0, torch.where(small, knuth, rejection))
    return sample.view(rate.shape)


def _knuth(keys: Tensor, rate: Tensor) -> Tensor:
    count, log_product = torch.zeros_like(rate), torch.zeros_like(rate)
    for _ in range(_MOST_ROUNDS):
        active = log_product > -rate
        if not bool(active.any()):
            break
        count = torch.where(active, count + 1, count)
        u = _operators._uniform(keys, (1,), rate.shape[1:], torch.float32, 0.0, 1.0)
        keys = _operators._fold(keys, (0,))
        log_product = log_product + _elementary.log(u)
    return count - 1


def _transformed_rejection(keys: Tensor, rate: Tensor) -> Tensor:
    """Return Poisson draws for rates `(rows, n)`; redraw a row until all its elements are accepted.

    As in JAX, an element that accepts several proposals during these rounds takes the last one.
    """
    sample, accepted = torch.full_like(rate, -1.0), torch.zeros_like(rate, dtype=torch.bool)
    rows = torch.arange(rate.shape[0], device=rate.device)
    for _ in range(_MOST_ROUNDS):
        if not rows.numel():
            return sample
        k, good = _propose(keys, rate[rows])
        sample[rows] = torch.where(good, k, sample[rows])
        accepted[rows] |= good
        again = ~accepted[rows].all(1)
        rows, keys = rows[again], _operators._fold(keys, (0,))[again]
    _raise_if_any((~accepted).reshape(-1).nonzero().squeeze(1), rate.reshape(-1), "Poisson")
    return sample


def _propose(keys: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Return one proposal for each element, and the mask of accepted ones."""
    b = 0.931 + 2.53 * _square_root(rate)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    u = _operators._uniform(keys, (1,), rate.shape[1:], rate.dtype, 0.0, 1.0) - 0.5
    v = _operators._uniform(keys, (2,), rate.shape[1:], rate.dtype, 0.0, 1.0)
    us = 0.5 - u.abs()
    k = torch.floor(_fused(2.0 * a / us + b, u, rate) + 0.43)
    at_once = (us >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2.0))
    outside = (k < 0) | ((us < 0.013) & (v > us))
    log_bound = _elementary.log(v * inverse_alpha / (a / (us * us) + b))
    log_density = _fused(k, _elementary.log(rate), -rate) - _log_factorial(k.clamp_min(0.0))
    return k, at_once | (~outside & (log_bound <= log_density))


def _proposal(keys: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return `x²` and `(1 + c x)³` of normals x, drawn again until 1 + c x > 0."""
    normal, v = torch.zeros_like(c), torch.zeros_like(c)
    left, own = torch.arange(len(c), device=c.device), _operators._fold(keys, (1,))
    for _ in range(_MOST_ROUNDS):
        if not left.numel():
            break
        x = _operators._standard_normal(own, (1,), (), c.dtype)
        normal[left], v[left] = x, 1.0 + x * c[left]
        again = v[left] <= 0
        left, own = left[again], _operators._fold(own[again], (0,))
    return normal * normal, v * v * v


def _log_factorial(k: Tensor) -> Tensor:
    """Return `log(k!)` by Lanczos' approximation (SIAM J. Numerical Analysis 1, 1964), as XLA does.

    For a large k, the float32 error of this function decides which proposals JAX accepts: at a rate of
    1e5, a fraction of 0.015 of the samples differs from JAX with `torch.lgamma`, and 0.003 with this
    function.
    """
    series = torch.full_like(k, _LANCZOS[0])
    for i, coefficient in enumerate(_LANCZOS[1:]):
        series = series + torch.full_like(k, coefficient) / (k + float(i + 1))
    shifted = k + 7.5
    log_shifted = torch.full_like(k, math.log(7.5)) + _elementary.log(1.0 + k / 7.5)
    constant = torch.full_like(k, math.log(2.0 * math.pi) / 2.0)
    power = _fused(k + 0.5 - shifted / log_shifted, log_shifted, constant)
    return power + _elementary.log(series)


def _fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return `a b + c` of float32 tensors with a single rounding, as XLA compiles it."""
    if a.device.type == "mps":
        return a * b + c
    return (a.double() * b.double() + c.double()).float()


def _square_root(x: Tensor) -> Tensor:
    return _normal._sqrt(x)


def _raise_if_any(left: Tensor, parameters: Tensor, name: str) -> None:
    if left.numel():
        raise RuntimeError(
            f"the sampler of the {name} distribution rejected {_MOST_ROUNDS} proposals in a row, for "
            f"the parameter {float(parameters[left[0]])}. Choose a less extreme parameter."
        )
