"""Draws of real numbers from keys: exponential, Gumbel, Laplace and truncated normal.

Each element is a function of one uniform draw, computed with the logarithm or error function of
`_elementary.py`: the same bits on every machine, and within the stated distance of JAX 0.10.2.

Read next: `gammas.py`, whose draws reject proposals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ftrain.core.random import _jax_families, _operators
from ftrain.core.random._exact import exact
from ftrain.core.random._parameters import check_wide, filled
from ftrain.core.random._rejection import compute_dtype
from ftrain.core.random.keys import _check_single, _folds
from ftrain.core.random.sample import _check_float, _shape

__all__ = ["exponential", "gumbel", "laplace", "truncated_normal"]


def exponential(
    key: Tensor,
    shape: int | Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return exponential floats of mean 1: `-log(1 - u)`, u uniform in [0, 1).

    Args:
        key: a single key, int32 `(2,)`.
        shape: the shape of the result.
        dtype: float32, float64, bfloat16 or float16.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `shape` and `dtype`, within 1 ulp of `jax.random.exponential` (bfloat16 and float16:
        equal).

    Raises:
        ValueError: for another dtype, or an array of keys (`torch.vmap` over them instead).

    >>> from ftrain.core.random import key
    >>> exponential(key(0), (2,))
    tensor([2.9501, 3.8434])
    """
    _check_single(key, "exponential")
    _check_float(dtype, "exponential")
    return _jax_families.exponential(key, _folds(folds), _shape(shape, "exponential"), dtype)


def laplace(
    key: Tensor,
    shape: int | Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return Laplace floats of location 0 and scale 1: `sign(u) log(1 - |u|)`, u uniform in (-1, 1).

    Args:
        key: a single key, int32 `(2,)`.
        shape: the shape of the result.
        dtype: float32, float64, bfloat16 or float16.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `shape` and `dtype`, within 2 ulp of `jax.random.laplace` (bfloat16 and float16:
        equal).

    Raises:
        ValueError: for another dtype, or an array of keys (`torch.vmap` over them instead).

    >>> from ftrain.core.random import key
    >>> laplace(key(0), (2,))
    tensor([-2.2570, -3.1503])
    """
    _check_single(key, "laplace")
    _check_float(dtype, "laplace")
    return _jax_families.laplace(key, _folds(folds), _shape(shape, "laplace"), dtype)


def gumbel(
    key: Tensor,
    shape: int | Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    mode: Literal["low", "high"] = "low",
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return standard Gumbel floats: `-log(-log(u))`, u uniform in (0, 1).

    Args:
        key: a single key, int32 `(2,)`.
        shape: the shape of the result.
        dtype: float32, float64, bfloat16 or float16.
        mode: `"high"` draws two uniforms for each element, so that the largest float32 value is near 32
            instead of 16, and events of probability below 1e-7 occur with that probability.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `shape` and `dtype`, within `2 eps max(1, |g|)` of `jax.random.gumbel`, with the eps
        of the dtype (bfloat16: equal; float16: equal outside `jax.jit`).

    Raises:
        ValueError: for another dtype or mode, or an array of keys (`torch.vmap` over them instead).

    >>> from ftrain.core.random import key
    >>> gumbel(key(0), (2,))
    tensor([2.9234, 3.8326])
    """
    _check_single(key, "gumbel")
    _check_float(dtype, "gumbel")
    is_high = _is_high(mode, "gumbel")
    return _jax_families.gumbel(key, _folds(folds), _shape(shape, "gumbel"), dtype, is_high)


def truncated_normal(
    key: Tensor,
    lower: float | Tensor,
    upper: float | Tensor,
    shape: int | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return floats of a standard normal distribution truncated to (lower, upper).

    A sample is `sqrt(2) erfinv(u)`, with u uniform between `erf(lower / sqrt(2))` and
    `erf(upper / sqrt(2))`. As in JAX, samples in the tails are coarse, because erf is near 1 there: an
    interval beyond 5 (float32) or 8 (float64) gives only its own ends. Draw tails in float64.

    Args:
        key: a single key, int32 `(2,)`.
        lower: lower end; a number or a tensor that broadcasts to `shape`; may be -infinity.
        upper: upper end, like `lower`, and above it; may be infinity. On the CPU, an empty interval
            raises (JAX returns numbers outside of it; so does ftrain on other devices, where a check
            would wait for the device).
        shape: the shape of the result; default: that to which `lower` and `upper` broadcast.
        dtype: float32 or float64; default: that of the tensors, float32 for numbers.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `shape` and `dtype`, differentiable with respect to `lower` and `upper` for a fixed
        draw. Distance from `jax.random.truncated_normal`: at most 4 ulp for bounds within [-2, 2] or
        infinite (float64: for all intervals that were measured); 500 eps for float32 with bounds up to
        4, where one ulp of erf changes a sample by as much.

    Raises:
        ValueError: for another dtype, bounds that do not broadcast to `shape`, `lower >= upper`, or an
            array of keys (`torch.vmap` over them instead).

    >>> from ftrain.core.random import key
    >>> truncated_normal(key(0), -2.0, 2.0, (2,))
    tensor([1.4560, 1.7147])
    """
    _check_single(key, "truncated_normal")
    size, (low, high) = filled("truncated_normal", key, (lower, upper), shape, dtype)
    check_wide(low.dtype, "truncated_normal")
    value = _jax_families.truncated_normal(key, _folds(folds), low.detach(), high.detach())
    if not isinstance(lower, Tensor) and not isinstance(upper, Tensor):
        return value

    def formula() -> Tensor:
        unit = _operators.threefry_uniform(key, _folds(folds), size, low.dtype, 0.0, 1.0)
        # In float64, since torch.erfinv of float32 is off by up to 20,000 ulp.
        wide = compute_dtype(key.device)
        a, b = (torch.erf(v.to(key.device, wide) / math.sqrt(2.0)) for v in (low, high))
        inside = 1.0 - torch.finfo(wide).eps / 2
        u = (unit.to(wide) * (b - a) + a).clamp(-inside, inside)
        return (math.sqrt(2.0) * torch.erfinv(u)).to(low.dtype)

    return exact(value, formula, low, high)


def _is_high(mode: str, name: str) -> bool:
    if mode not in ("low", "high"):
        raise ValueError(
            f'{name}: expected mode to be "low" or "high", got {mode!r}. Write mode="low".'
        )
    return mode == "high"
