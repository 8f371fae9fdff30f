"""Torch operators that draw samples for the modules `continuous`, `discrete`, `gammas` and `vectors`.

As in `_operators.py`, an operator takes keys `(*batch, 2)` and returns `(*batch, *shape)`; each row
equals the draw from that row's key and parameters alone.

Read next: `_elementary.py`, the arithmetic; `_jax_samplers.py`, the samplers that reject proposals.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core._torch_dispatch import SLOPES
from ftrain.core.random import (
    _cuda_kernel,
    _cuda_samplers,
    _elementary,
    _floats,
    _jax_samplers,
    _normal,
    _operators,
)
from ftrain.core.random._families import (
    _define,
    _define_slope,
    _gamma_slope,
    _rows,
    _Sample,
    _slope,
    _wide,
)

Ints = Sequence[int]


# Draws by the inverse of a distribution function, from a key and a shape.


def _on_cuda(
    family: int,
    key: Tensor,
    folds: Ints,
    shape: Ints,
    dtype: torch.dtype,
    a: float = 0.0,
    b: float = 0.0,
) -> Tensor | None:
    """Return the draws of one kernel launch; `None` without the CUDA kernels."""
    kernel = _cuda_samplers.kernel_of(key)
    if kernel is None:
        return None
    return kernel.sample(family, key, folds, _operators._drawn(key, shape, dtype), a, b)


def _exponential_kernel(key: Tensor, folds: Ints, shape: Ints, dtype: torch.dtype) -> Tensor:
    drawn = _on_cuda(_cuda_kernel.EXPONENTIAL, key, folds, shape, dtype)
    if drawn is not None:
        return drawn
    u = _operators._uniform(key, folds, shape, dtype, 0.0, 1.0)
    return -_elementary.log1p(-_floats32(u)).to(dtype)


def _laplace_kernel(key: Tensor, folds: Ints, shape: Ints, dtype: torch.dtype) -> Tensor:
    lowest = torch.finfo(dtype).eps / 2.0 - 1.0
    drawn = _on_cuda(_cuda_kernel.LAPLACE, key, folds, shape, dtype, lowest, 1.0)
    if drawn is not None:
        return drawn
    u = _floats32(_operators._uniform(key, folds, shape, dtype, lowest, 1.0))
    return (u.sign() * _elementary.log1p(-u.abs())).to(dtype)


def _gumbel_kernel(
    key: Tensor, folds: Ints, shape: Ints, dtype: torch.dtype, is_high: bool
) -> Tensor:
    tiny, step = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
    family, *bounds = (
        (_cuda_kernel.GUMBEL_HIGH, step, tiny) if is_high else (_cuda_kernel.GUMBEL, tiny, 1.0)
    )
    drawn = _on_cuda(family, key, folds, shape, dtype, *bounds)
    if drawn is not None:
        return drawn
    if not is_high:
        u = _operators._uniform(key, folds, shape, dtype, tiny, 1.0)
        inner = -_elementary.log(_floats32(u)).to(dtype)
    else:
        high, low = _operators._uniform(key, folds, (2, *shape), dtype, 0.0, 1.0).unbind(
            key.ndim - 1
        )
        u = torch.where(high >= 0.5, high, high + step * low + tiny)
        inner = -_elementary.log1p(-_floats32(u)).to(dtype)
    return -_elementary.log(_floats32(inner)).to(dtype)


def _floats32(x: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32, in which XLA computes their logarithms."""
    return x.float() if x.itemsize < 4 else x


def _fake(key: Tensor, folds: Ints, shape: Ints, dtype: torch.dtype, *_: Any) -> Tensor:
    return _operators._drawn(key, shape, dtype)


exponential = _operators._define(
    "threefry_exponential(Tensor key, int[] folds, SymInt[] shape, ScalarType dtype)",
    _exponential_kernel,
    _fake,
)
laplace = _operators._define(
    "threefry_laplace(Tensor key, int[] folds, SymInt[] shape, ScalarType dtype)",
    _laplace_kernel,
    _fake,
)
gumbel = _operators._define(
    "threefry_gumbel(Tensor key, int[] folds, SymInt[] shape, ScalarType dtype, bool is_high)",
    _gumbel_kernel,
    _fake,
)


# Draws with parameters, which have the shape of the result.


def _truncated_kernel(key: Tensor, folds: Ints, lower: Tensor, upper: Tensor) -> Tensor:
    if kernel := _cuda_samplers.kernel_of(key):
        return _cuda_samplers.truncated_normal(kernel, key, folds, lower, upper)
    dtype, shape = lower.dtype, lower.shape[key.ndim - 1 :]
    lower, upper = _compact(lower), _compact(upper)
    if lower.is_cpu and bool((lower >= upper).any()):  # on an accelerator, the draw would wait
        raise ValueError(
            "truncated_normal: expected lower < upper, got an interval with lower >= upper. Swap the "
            "bounds, or select other intervals with torch.where first."
        )
    root2 = torch.full((), math.sqrt(2.0), dtype=dtype, device=lower.device)
    low, high = (_elementary.erf(_wide(v / root2)).to(dtype) for v in (lower, upper))
    u = _floats.scale(_operators._uniform(key, folds, shape, dtype, 0.0, 1.0), low, high)
    inside = u.clamp(torch.finfo(dtype).eps / 2 - 1, 1 - torch.finfo(dtype).eps / 2)
    inverse = (_normal._erfinv64 if dtype == torch.float64 else _normal._erfinv32)(inside)
    normal = root2 * torch.where(u.abs() < 1, inverse, u * math.inf)
    return normal.clamp(
        torch.nextafter(lower, torch.full_like(lower, math.inf)),
        torch.nextafter(upper, torch.full_like(upper, -math.inf)),
    )


def _compact(x: Tensor) -> Tensor:
    """Return a tensor that broadcasts to `x`, without the repetitions of its expanded dimensions.

    The bounds of a million draws are most often two numbers. Expanded to a million elements, their error
    functions take 1.2 s.
    """
    for dim in range(x.ndim):
        if x.stride(dim) == 0 and x.shape[dim] > 1:
            x = x.narrow(dim, 0, 1)
    return x


def _gamma_kernel(key: Tensor, folds: Ints, alpha: Tensor, log_space: bool = False) -> Tensor:
    if kernel := _cuda_samplers.kernel_of(key):
        return _cuda_samplers.gamma(kernel, key, folds, alpha, log_space)
    return _jax_samplers.gamma(key, folds, alpha, log_space)


def _log_gamma_slope_kernel(alpha: Tensor, log_sample: Tensor) -> Tensor:
    """Return d log(x) / d alpha of samples x of Gamma(alpha, 1), given log(x).

    Near 0, where P(X < x) = x^alpha / Gamma(alpha + 1), it is (digamma(alpha + 1) - log x) / alpha.
    """
    a, log_x = _wide(alpha), _wide(log_sample)
    x = log_x.clamp(-30.0, 700.0).exp()
    near_zero = (torch.digamma(a + 1) - log_x) / a
    slope = SLOPES["gamma"](a, x) / x
    return torch.where(log_x < -30.0, near_zero, slope).to(alpha.dtype)


def _softmax_kernel(x: Tensor) -> Tensor:
    if kernel := _cuda_samplers.kernel_of(x):
        return _cuda_samplers.softmax(kernel, x)
    wide = _wide(x)
    powers = _elementary.exp(wide - wide.amax(-1, True))
    return (powers / _elementary.total(powers).unsqueeze(-1)).to(x.dtype)


def _share_kernel(log_x: Tensor, log_y: Tensor) -> Tensor:
    """Return x / (x + y) from the logarithms of x and y."""
    if kernel := _cuda_samplers.kernel_of(log_x):
        return _cuda_samplers.share(kernel, log_x, log_y)
    return _softmax_kernel(torch.stack([log_x, log_y], -1))[..., 0]


truncated_normal = _define("truncated_normal", "Tensor lower, Tensor upper", _truncated_kernel)
_gamma_draw = _define("gamma_draw", "Tensor alpha", _gamma_kernel)
_log_gamma_draw = _define(
    "log_gamma_draw",
    "Tensor alpha",
    functools.partial(_gamma_kernel, log_space=True),
)
_log_gamma_slope = _define_slope(
    "log_gamma_slope", "Tensor alpha, Tensor log_sample", _log_gamma_slope_kernel
)
softmax = _define_slope("row_softmax", "Tensor x", _softmax_kernel)
share = _define_slope("row_share", "Tensor log_x, Tensor log_y", _share_kernel)


def gamma(key: Tensor, folds: Ints, alpha: Tensor) -> Tensor:
    """Return Gamma(alpha, 1) samples, differentiable in alpha."""
    sample: Tensor = _GammaDraw.apply(key, alpha, tuple(folds))  # type: ignore[no-untyped-call]
    return sample


def log_gamma(key: Tensor, folds: Ints, alpha: Tensor) -> Tensor:
    """Return logarithms of Gamma(alpha, 1) samples, differentiable in alpha."""
    sample: Tensor = _LogGammaDraw.apply(key, alpha, tuple(folds))  # type: ignore[no-untyped-call]
    return sample


class _GammaDraw(_Sample):
    operator = staticmethod(_gamma_draw)

    @staticmethod
    def forward(key: Tensor, alpha: Tensor, folds: Ints) -> Tensor:  # Dynamo reads the signature
        return _gamma_draw(key, folds, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, grad * _GammaDraw.slope(*ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, key: None, alpha: Tensor, folds: None) -> Tensor:
        return alpha * _GammaDraw.slope(*ctx.saved_tensors)

    @staticmethod
    def slope(alpha: Tensor, sample: Tensor) -> Tensor:
        """Return d sample / d alpha of a gamma sample, or its limit 0 if the sample underflowed."""
        least = torch.finfo(sample.dtype).tiny
        slope = _slope(_gamma_slope, alpha, sample.clamp_min(least))
        return torch.where(sample >= least, slope, 0.0)

    @staticmethod
    def vmap(info: Any, dims: Any, key: Tensor, alpha: Tensor, folds: Ints) -> Any:
        key, alpha = _rows(info.batch_size, dims[:2], (key, alpha))
        return gamma(key, folds, alpha), 0


class _LogGammaDraw(_Sample):
    operator = staticmethod(_log_gamma_draw)

    @staticmethod
    def forward(key: Tensor, alpha: Tensor, folds: Ints) -> Tensor:  # Dynamo reads the signature
        return _log_gamma_draw(key, folds, alpha)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, grad * _slope(_log_gamma_slope, *ctx.saved_tensors), None

    @staticmethod
    def jvp(ctx: Any, key: None, alpha: Tensor, folds: None) -> Tensor:
        return alpha * _slope(_log_gamma_slope, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, dims: Any, key: Tensor, alpha: Tensor, folds: Ints) -> Any:
        key, alpha = _rows(info.batch_size, dims[:2], (key, alpha))
        return log_gamma(key, folds, alpha), 0


# Integers.


def _poisson_kernel(key: Tensor, folds: Ints, rate: Tensor, dtype: torch.dtype) -> Tensor:
    if kernel := _cuda_samplers.kernel_of(key):
        return _cuda_samplers.poisson(kernel, key, folds, rate, dtype)
    bits = torch.iinfo(dtype).bits
    if not bool((rate >= 0).all() & (rate < math.inf).all()):
        raise ValueError(
            "poisson: expected finite rates of 0 or more, got a negative, infinite or NaN one. Map them "
            "to positive numbers first, for instance with softplus."
        )
    if not bool((rate <= 2.0 ** (bits - 2)).all()):
        raise ValueError(
            f"poisson: expected rates of at most 2^{bits - 2} for counts of {bits} bits, got "
            f"{float(rate.max())}. Draw from a normal distribution of this mean and variance."
        )
    return _jax_samplers.poisson(key, folds, rate).to(dtype)


def _poisson_rule(
    info: Any, dims: Any, key: Tensor, folds: Ints, rate: Tensor, dtype: torch.dtype
) -> Any:
    key, rate = _rows(info.batch_size, (dims[0], dims[2]), (key, rate))
    return poisson(key, folds, rate, dtype), 0


def _check_weights(p: Tensor) -> None:
    """Raise unless all weights are finite and non-negative, with a positive sum; check on a CPU only.

    On an accelerator, the draw would wait for the result of the check.
    """
    if p.is_cpu and not bool(((p >= 0) & (p < math.inf)).all() & (p.sum(-1) > 0).all()):
        raise ValueError(
            "choice: expected finite weights p of 0 or more with a positive sum, got a negative, "
            "infinite or NaN weight, or weights of 0 only. Map them to positive numbers first, for "
            "instance with softmax."
        )


def _log_weights_kernel(p: Tensor, draws: int) -> Tensor:
    """Return log(p) of weights p; raise if fewer than `draws` of them are positive."""
    _check_weights(p)
    if p.is_cpu and bool((fewest := (p > 0).sum(-1).min()) < draws):
        raise ValueError(
            f"choice: expected at least {draws} positive weights p for {draws} draws without "
            f"replacement, got {int(fewest)}. Draw fewer, or give more elements a positive weight."
        )
    if kernel := _cuda_samplers.kernel_of(p):
        return _cuda_samplers.log(kernel, p)
    return _elementary.log(p)


def _log_weights_rule(info: Any, dims: Any, p: Tensor, draws: int) -> Any:
    return log_weights(*_rows(info.batch_size, dims[:1], (p,)), draws), 0


def _choice_kernel(key: Tensor, folds: Ints, shape: Ints, p: Tensor) -> Tensor:
    """Return indices into the last dimension of p `(*batch, n)`, with probabilities p."""
    if kernel := _cuda_samplers.kernel_of(key):
        out = _operators._drawn(key, shape, torch.int64)
        return _cuda_samplers.choice(kernel, key, folds, out, p)
    _check_weights(p)
    sums = _elementary.cumulative(p).contiguous()
    u = _operators._uniform(key, folds, (math.prod(shape),), p.dtype, 0.0, 1.0)
    found = torch.searchsorted(sums, (sums[..., -1:] * (1.0 - u)).contiguous())
    return found.reshape((*key.shape[:-1], *shape))


def _choice_rule(info: Any, dims: Any, key: Tensor, folds: Ints, shape: Ints, p: Tensor) -> Any:
    key, p = _rows(info.batch_size, (dims[0], dims[3]), (key, p))
    return choice(key, folds, shape, p), 0


def _signs_kernel(key: Tensor, folds: Ints, shape: Ints, dtype: torch.dtype) -> Tensor:
    """Return -1 and 1."""
    if kernel := _cuda_samplers.kernel_of(key):
        return _cuda_samplers.signs(kernel, key, folds, _operators._drawn(key, shape, dtype))
    wide = torch.float64 if dtype.itemsize == 8 else torch.float32
    return sign_of(_operators._uniform(key, folds, shape, wide, 0.0, 1.0), dtype)


def sign_of(u: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 for uniform floats below 1/2, -1 for others."""
    return (u < 0.5).to(dtype) * 2 - 1


poisson = _operators._define(
    "threefry_poisson_draw(Tensor key, int[] folds, Tensor rate, ScalarType dtype)",
    _poisson_kernel,
    lambda key, folds, rate, dtype: key.new_empty(rate.shape, dtype=dtype),
    _poisson_rule,
)
signs = _operators._define(
    "threefry_signs(Tensor key, int[] folds, SymInt[] shape, ScalarType dtype)",
    _signs_kernel,
    _fake,
)
log_weights = _operators._define(
    "log_weights(Tensor p, SymInt draws)",
    _log_weights_kernel,
    lambda p, draws: torch.empty_like(p, memory_format=torch.contiguous_format),
    _log_weights_rule,
)
choice = _operators._define(
    "threefry_choice(Tensor key, int[] folds, SymInt[] shape, Tensor p)",
    _choice_kernel,
    lambda key, folds, shape, p: _operators._drawn(key, shape, torch.int64),
    _choice_rule,
)
