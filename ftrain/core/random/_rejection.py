"""Exact samplers that may need several uniforms per sample: gamma, Poisson, binomial, von Mises.

For each element, values are proposed with draws of its own until one is accepted, independently of the
rounds that other elements need, so that under vmap each row equals the draw from its own key alone.
Arithmetic is in float64, if the device has it, since the acceptance tests subtract large logarithms.

These run inside operators (`_families.py`), on plain tensors: a trace sees no loop and no shape that
depends on a value. Library logarithms differ between machines in the last bit, so once in some 10^8
draws another machine may accept what this one rejects. On CUDA, kernels that repeat these samplers
(`families.cu`) do not wait for the device.

Read next: `_families.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ftrain.core.random import _operators

Ints = Sequence[int]
#: The draws of one round: `uniform(i)` and `normal(i)` are independent for different i.
Draw = Callable[[int], Tensor]
#: `(parameters, uniform, normal) -> (values, accepted)`, for the elements not yet accepted.
Propose = Callable[[list[Tensor], Draw, Draw], tuple[Tensor, Tensor]]

# A round accepts with probability 0.66 at least, so this number of rounds is never reached by chance.
_MOST_ROUNDS = 1000
_SMALL = 10.0  # below this mean, Poisson and binomial draws add up probabilities


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype that samplers compute in: float64, or float32 where the device lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64


def log_gamma(key: Tensor, folds: Ints, alpha: Tensor) -> Tensor:
    """Return the logarithm of a Gamma(alpha, 1) sample, which does not underflow for small `alpha`.

    Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 26 (2000); below 1,
    Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha).
    """
    boosted = torch.where(alpha < 1, alpha + 1, alpha)

    def propose(params: list[Tensor], uniform: Draw, normal: Draw) -> tuple[Tensor, Tensor]:
        d = params[0] - 1 / 3
        x, u = normal(0), uniform(1)
        t = x / (9 * d).sqrt()
        # log(1 - u) < x²/2 + d (1 - v + log v) with v = (1 + t)³. The right side is computed from t,
        # because it is a difference of large numbers; for t < -1 it is NaN, and the proposal rejected.
        return torch.log(d) + 3 * torch.log1p(t), torch.log1p(-u) < 3 * d * _log_remainder(t)

    is_valid = (alpha >= 0) & torch.isfinite(alpha)
    sample = _rejected("gamma", key, folds, [boosted], is_valid, propose)
    u = _uniform(key, (*folds, 2), alpha)
    return torch.where(alpha < 1, sample + torch.log1p(-u) / alpha, sample)


def poisson(key: Tensor, folds: Ints, rate: Tensor) -> Tensor:
    """Return a Poisson sample, by summing probabilities or by transformed rejection (PTRS).

    Hörmann, "The transformed rejection method for generating Poisson random variables", Insurance:
    Mathematics and Economics 12 (1993).
    """

    def propose(params: list[Tensor], uniform: Draw, normal: Draw) -> tuple[Tensor, Tensor]:
        (rate,) = params
        b = 0.931 + 2.53 * rate.sqrt()
        a = -0.059 + 0.02483 * b
        u, v = uniform(0) - 0.5, uniform(1)
        us = 0.5 - u.abs()
        k = torch.floor((2 * a / us + b) * u + rate + 0.43)
        inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
        bound = torch.log(v * inverse_alpha / (a / (us * us) + b))
        return k, (k >= 0) & (bound <= _log_poisson(k.clamp_min(0), rate))

    is_small = rate < _SMALL
    large = _rejected("Poisson", key, folds, [rate], ~is_small & torch.isfinite(rate), propose)
    # P(0) = e^-rate, P(k) = P(k - 1) rate / k
    first = torch.where(is_small, torch.exp(-rate), 1.0)
    u = _uniform(key, (*folds, 2), rate)
    small = _summed(u, first, [rate], lambda k, params: params[0] / k)
    return torch.where(is_small, small, large)


def binomial(key: Tensor, folds: Ints, count: Tensor, prob: Tensor) -> Tensor:
    """Return a binomial sample, by summing probabilities or by transformed rejection (BTRS).

    Hörmann, "The generation of binomial random variates", Journal of Statistical Computation and
    Simulation 46 (1993).
    """
    p = torch.minimum(prob, 1 - prob)
    is_certain = (count <= 0) | (p <= 0)

    def propose(params: list[Tensor], uniform: Draw, normal: Draw) -> tuple[Tensor, Tensor]:
        n, p = params
        deviation = (n * p * (1 - p)).sqrt()
        b = 1.15 + 2.53 * deviation
        a = -0.0873 + 0.0248 * b + 0.01 * p
        u, v = uniform(0) - 0.5, uniform(1)
        us = 0.5 - u.abs()
        k = torch.floor((2 * a / us + b) * u + n * p + 0.5)
        alpha = (2.83 + 5.1 / b) * deviation
        bound = torch.log(v * alpha / (a / (us * us) + b))
        log_ratio = _log_binomial(torch.minimum(k.clamp_min(0), n), n, p)
        return k, (k >= 0) & (k <= n) & (bound <= log_ratio)

    is_small = count * p < _SMALL
    is_valid = torch.isfinite(count) & torch.isfinite(prob)
    is_large = ~is_small & ~is_certain & is_valid
    large = _rejected("binomial", key, folds, [count, p], is_large, propose)
    # P(0) = (1 - p)^n, P(k) = P(k - 1) (n - k + 1) / k · p / (1 - p)
    first = torch.where(is_small & ~is_certain & is_valid, torch.exp(count * torch.log1p(-p)), 1.0)
    u = _uniform(key, (*folds, 2), p)
    odds = p / (1 - p)
    small = _summed(u, first, [count, odds], lambda k, params: (params[0] - k + 1) / k * params[1])
    found = torch.where(is_small, small, large)
    found = torch.where(is_certain, 0.0, found)
    found = torch.where(prob > 0.5, count.clamp_min(0) - found, found)
    return torch.where(torch.isnan(prob) | torch.isnan(count), math.nan, found)


def von_mises(key: Tensor, folds: Ints, concentration: Tensor) -> Tensor:
    """Return a von Mises sample around 0, in [-pi, pi].

    Best and Fisher, "Efficient simulation of the von Mises distribution", Applied Statistics 28 (1979).
    """

    def propose(params: list[Tensor], uniform: Draw, normal: Draw) -> tuple[Tensor, Tensor]:
        kappa = params[0].clamp(1e-150, 1e150)
        # excess = r - 1 and below = 1 - f are computed directly, because they are as small as 1 / kappa.
        root = (1 + 4 * kappa**2).sqrt()
        short = ((2 * (1 + root)).sqrt() - 1 - 1 / (root + 2 * kappa)) / (2 * kappa)  # 1 - rho
        excess = torch.where(kappa < 1e-5, 1 / kappa + kappa - 1, short**2 / (2 * (1 - short)))
        half = math.pi / 2 * uniform(0)
        below = excess * 2 * half.sin() ** 2 / (excess + 2 * half.cos() ** 2)
        c, u = kappa * (excess + below), uniform(1)
        accepted = (c * (2 - c) - u > 0) | (torch.log(c / u) + 1 - c >= 0)
        angle = 2 * (below / 2).clamp(0, 1).sqrt().asin()
        return torch.where(uniform(2) < 0.5, -angle, angle), accepted

    is_valid = (concentration > 0) & torch.isfinite(concentration)
    return _rejected("von Mises", key, folds, [concentration], is_valid, propose)


def _rejected(
    name: str,
    key: Tensor,
    folds: Ints,
    parameters: list[Tensor],
    is_valid: Tensor,
    propose: Propose,
) -> Tensor:
    """Propose values until one is accepted for each valid element; invalid elements become NaN.

    `key` is `(*batch, 2)`, parameters are `(*batch, *shape)`. The first round draws for all elements at
    once, from the key with 0 folded in. Later rounds draw from a key for each element, with 1 and the
    element's index in `shape` folded in.
    """
    like = parameters[0]
    dtype, shape = like.dtype, like.shape[key.ndim - 1 :]
    flat = [p.reshape(-1) for p in parameters]

    value, accepted = propose(flat, *_draws(key, (*folds, 0), shape, dtype))
    is_valid = is_valid.reshape(-1)
    value = torch.where(is_valid, value, math.nan)
    left = (is_valid & ~accepted).nonzero().squeeze(1)
    if not left.numel():
        return value.view(like.shape)
    rows = _operators._fold(key, (*folds, 1)).reshape(-1, 2)
    size = math.prod(shape)
    keys = _operators._fold_in(rows[left // size], left % size)
    for number in range(_MOST_ROUNDS):
        own = [p[left] for p in flat]
        proposed, accepted = propose(own, *_draws(keys, (number,), (), dtype))
        value[left] = torch.where(accepted, proposed, value[left])
        again = ~accepted
        left, keys = left[again], keys[again]
        if not left.numel():
            return value.view(like.shape)
    raise RuntimeError(
        f"the sampler of the {name} distribution rejected {_MOST_ROUNDS} proposals in a row, for the "
        f"parameters {[float(p[left[0]]) for p in flat]}. Choose less extreme parameters."
    )


def _draws(key: Tensor, folds: Ints, shape: Ints, dtype: torch.dtype) -> tuple[Draw, Draw]:
    """Return two functions that draw uniforms and normals, both 1-d, for one rejection round."""

    def uniform(i: int) -> Tensor:
        return _operators._uniform(key, (*folds, i), shape, dtype, 0.0, 1.0).reshape(-1)

    def normal(i: int) -> Tensor:
        return _operators._standard_normal(key, (*folds, i), shape, dtype).reshape(-1)

    return uniform, normal


def _summed(
    u: Tensor,
    first: Tensor,
    parameters: list[Tensor],
    ratio: Callable[[Tensor, list[Tensor]], Tensor],
) -> Tensor:
    """Return the first k whose cumulative probability exceeds u, where `P(k) = P(k - 1) ratio(k)`.

    Args:
        first: P(0); 1 for elements whose result is not used.
    """
    found = torch.zeros_like(u).reshape(-1)
    params = [p.reshape(-1) for p in parameters]
    left = (u.reshape(-1) >= first.reshape(-1)).nonzero().squeeze(1)
    own, p = [each[left] for each in params], first.reshape(-1)[left]
    rest = u.reshape(-1)[left] - p
    # The mean is below 10, so the probability of k = 200 is below the smallest float64.
    for number in range(1, 200):
        if not left.numel():
            break
        k = torch.full_like(p, number)
        p = p * ratio(k, own)
        found[left] = k
        again = rest >= p
        left, rest, p = left[again], (rest - p)[again], p[again]
        own = [each[again] for each in own]
    return found.view(u.shape)


def _uniform(key: Tensor, folds: Ints, like: Tensor) -> Tensor:
    return _operators._uniform(key, folds, like.shape[key.ndim - 1 :], like.dtype, 0.0, 1.0)


def _log_remainder(t: Tensor) -> Tensor:
    """Return log(1 + t) - t + t²/2 - t³/3; for small t, by its series, because the sum would cancel."""
    direct = torch.log1p(t) - t + t * t / 2 - t**3 / 3
    return torch.where(t.abs() < 1e-3, -(t**4) / 4 + t**5 / 5, direct)


def _log_poisson(k: Tensor, rate: Tensor) -> Tensor:
    """Return log P(k) of a Poisson distribution with a rate of 10 or more.

    For a large k, it is computed by Stirling's series and the deviance k log(k / rate) - k + rate,
    because the direct formula is a difference of large numbers.
    """
    t = (k - rate) / rate
    series = t * t * (1 / 2 - t * (1 / 6 - t * (1 / 12 - t / 20)))
    deviance = rate * torch.where(t.abs() < 1e-3, series, (1 + t) * torch.log1p(t) - t)
    tail = (1 / 12 - (1 / 360 - 1 / (1260 * k * k)) / (k * k)) / k
    large = -deviance - 0.5 * torch.log(2 * math.pi * k) - tail
    small = k * torch.log(rate) - rate - torch.lgamma(k + 1)
    return torch.where(k < 10, small, large)


def _log_binomial(k: Tensor, n: Tensor, p: Tensor) -> Tensor:
    """Return log P(k) / P(mode) of a binomial distribution, with Stirling's series of the factorials."""
    mode, odds = torch.floor((n + 1) * p), p / (1 - p)
    tail = _stirling_tail
    return (
        (mode + 0.5) * torch.log((mode + 1) / (odds * (n - mode + 1)))
        + (n + 1) * torch.log((n - mode + 1) / (n - k + 1))
        + (k + 0.5) * torch.log(odds * (n - k + 1) / (k + 1))
        + (tail(mode) + tail(n - mode) - tail(k) - tail(n - k))
    )


def _stirling_tail(k: Tensor) -> Tensor:
    """Return log k! minus its approximation log(2 pi) / 2 + (k + 1/2) log(k + 1) - (k + 1)."""
    n = k + 1
    series = (1 / 12 - (1 / 360 - 1 / (1260 * n * n)) / (n * n)) / n
    direct = torch.lgamma(n) - ((k + 0.5) * torch.log(n) - n + 0.5 * math.log(2 * math.pi))
    return torch.where(k < 10, direct, series)
