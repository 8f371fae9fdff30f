"""Random draws from keys; each function returns the same bits for a key on every machine.

The bits are those of JAX 0.10.2 (`jax_threefry_partitionable`): an element depends on the key and on
its own flat index, not on the number of elements. A draw does not change its key: two draws from one
key are not independent, so `split` it or give each draw other `folds`. torch's global generators are
not read.

Read next: `_operators.py`, the operators of these functions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core._torch import of_same_bits
from ftrain.core.random import _bounded, _floats, _integers, _operators
from ftrain.core.random._cuda_samplers import device_of_numbers
from ftrain.core.random._exact import exact
from ftrain.core.random.keys import _check_single, _folds

__all__ = ["bernoulli", "bits", "normal", "permutation", "randint", "uniform"]

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def bits(
    key: Tensor, shape: int | Sequence[int] = (), width: int = 32, *, folds: Sequence[int] = ()
) -> Tensor:
    """Return uniform random words (unsigned integers).

    Args:
        key: a single key, int32 `(2,)`.
        shape: the shape of the result; may be `()` or contain zeros.
        width: the number of bits of a word: 8, 16, 32 or 64.
        folds: integers in [0, 2^32) to fold into the key first, in order, as repeated calls of `fold_in`
            would, without these calls.

    Returns:
        A torch.uint8, uint16, uint32 or uint64 tensor of `shape`, equal to `jax.random.bits`.

    Raises:
        ValueError: for another width, or an array of keys (`torch.vmap` over them instead).

    >>> from ftrain.core.random import key
    >>> bits(key(0), (2,))
    tensor([4070199207, 4202968722], dtype=torch.uint32)
    """
    _check_single(key, "bits")
    if width not in (8, 16, 32, 64):
        raise ValueError(
            f"bits: expected width to be 8, 16, 32 or 64, got {width}. Write width=32."
        )
    return _operators.threefry_bits(key, _folds(folds), _shape(shape, "bits"), width)


def uniform(
    key: Tensor,
    shape: int | Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    minval: float | Tensor = 0.0,
    maxval: float | Tensor = 1.0,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return uniform floats in [minval, maxval): `max(minval, u (maxval - minval) + minval)`.

    `u` is a multiple of 2^-23 (float32), 2^-52 (float64), 2^-10 (float16) or 2^-7 (bfloat16).

    Args:
        key: a single key, int32 `(2,)`.
        shape: the shape of the result.
        dtype: float32, float64, bfloat16 or float16.
        minval: lower end, included; a number or a tensor that broadcasts to `shape`.
        maxval: upper end, excluded up to rounding, like `minval`.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `shape` and `dtype`, equal to `jax.random.uniform`. In `u (maxval - minval) +
        minval`, float32 and float64 round once, as JAX does on a CPU with fused multiply-add; float16
        and bfloat16 round after each operation, as JAX does outside `jax.jit`. Jitted JAX may round
        these once (float16, on a processor with AVX512-FP16); with the default bounds nothing is
        rounded.

    Raises:
        ValueError: for another dtype, or an array of keys (`torch.vmap` over them instead).

    >>> from ftrain.core.random import key
    >>> uniform(key(0), (2,))
    tensor([0.9477, 0.9786])
    """
    _check_single(key, "uniform")
    _check_float(dtype, "uniform")
    size = _shape(shape, "uniform")
    if not isinstance(minval, Tensor) and not isinstance(maxval, Tensor):
        return _operators.threefry_uniform(
            key, _folds(folds), size, dtype, float(minval), float(maxval)
        )
    device = device_of_numbers(key)
    low, high = (
        v.to(dtype) if isinstance(v, Tensor) else torch.full((), v, dtype=dtype, device=device)
        for v in (minval, maxval)
    )
    _check_broadcast("uniform", size, low, high)
    if key.is_cuda:
        bounds = (v.detach().expand(size) for v in (low, high))
        floats = _bounded.uniform(key, _folds(folds), *bounds)
        unit = None
    else:
        unit = _operators.threefry_uniform(key, _folds(folds), size, dtype, 0.0, 1.0)
        floats = _floats.scale(unit, low.detach(), high.detach())

    def formula() -> Tensor:
        u = unit
        if u is None:
            u = _operators.threefry_uniform(key, _folds(folds), size, dtype, 0.0, 1.0)
        return u * (high - low) + low

    return exact(floats, formula, low, high)


def normal(
    key: Tensor,
    shape: int | Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return standard normal floats: `sqrt(2) erfinv(u)`, u uniform in (-1, 1).

    Args:
        key: a single key, int32 `(2,)`.
        shape: the shape of the result.
        dtype: float32, float64, bfloat16 or float16.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `shape` and `dtype`, within 4 ulp of `jax.random.normal`, and the same bits on every
        device.

    Raises:
        ValueError: for another dtype, or an array of keys (`torch.vmap` over them instead).

    >>> from ftrain.core.random import key
    >>> normal(key(0), (2,))
    tensor([1.6226, 2.0253])
    """
    _check_single(key, "normal")
    _check_float(dtype, "normal")
    return _operators.threefry_normal(key, _folds(folds), _shape(shape, "normal"), dtype)


def bernoulli(
    key: Tensor,
    p: float | Tensor = 0.5,
    shape: int | Sequence[int] | None = None,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return bools that are True with probability `p`: `uniform(key, shape, dtype of p) < p`.

    Args:
        key: a single key, int32 `(2,)`.
        p: a number (taken as float32), or a float tensor that broadcasts to `shape`.
        shape: the shape of the result; default: the shape of `p`.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A bool tensor of `shape`, equal to `jax.random.bernoulli`.

    Raises:
        ValueError: if `p` does not broadcast to `shape`, or for an array of keys (`torch.vmap` over them
            instead).

    >>> from ftrain.core.random import key
    >>> bernoulli(key(0), 0.9, (4,))
    tensor([False, False,  True,  True])
    """
    _check_single(key, "bernoulli")
    if not isinstance(p, Tensor):
        size = () if shape is None else _shape(shape, "bernoulli")
        return _operators.threefry_bernoulli(key, _folds(folds), size, float(p))
    _check_float(p.dtype, "bernoulli")
    size = p.shape if shape is None else _shape(shape, "bernoulli")
    _check_broadcast("bernoulli", size, p)
    return _operators.threefry_uniform(key, _folds(folds), size, p.dtype, 0.0, 1.0) < p


def randint(
    key: Tensor,
    shape: int | Sequence[int],
    minval: int | Tensor,
    maxval: int | Tensor,
    dtype: torch.dtype = torch.int64,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return integers in [minval, maxval), as remainders of random words twice as wide as the dtype.

    Args:
        key: a single key, int32 `(2,)`.
        shape: the shape of the result.
        minval: lower end, included; an integer or an integer tensor that broadcasts to `shape`. Clipped
            to the range of `dtype`.
        maxval: upper end, excluded, like `minval`. `minval >= maxval` gives `minval`.
        dtype: any integer dtype of torch. Other dtypes give other numbers.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `shape` and `dtype`, equal to `jax.random.randint` of that dtype (under
        `jax_enable_x64`, so that bounds have 64 bits).

    Raises:
        ValueError: for another dtype, bounds that do not broadcast to `shape`, or an array of keys
            (`torch.vmap` over them instead).

    >>> from ftrain.core.random import key
    >>> randint(key(0), (5,), 0, 10)
    tensor([5, 1, 5, 7, 3])
    """
    _check_single(key, "randint")
    if dtype not in _integers.RANGE:
        raise ValueError(
            f"randint: expected an integer dtype, got {dtype}. Write dtype=torch.int64."
        )
    size = _shape(shape, "randint")
    if not isinstance(minval, Tensor) and not isinstance(maxval, Tensor):
        base, span = _integers.clipped(_bound(minval), _bound(maxval), dtype)
        return _operators.threefry_randint(key, _folds(folds), size, dtype, base, span)
    _check_broadcast("randint", size, *(v for v in (minval, maxval) if isinstance(v, Tensor)))
    if key.is_cuda:
        device = device_of_numbers(key)
        limits = [_integers.int64(v, device).expand(size) for v in (minval, maxval)]
        return _bounded.randint(key, _folds(folds), *limits, dtype)
    width = max(32, _integers.WIDTH[dtype])
    # split(key)[i] is fold_in(key, i)
    high, low = (_operators.threefry_bits(key, (*_folds(folds), i), size, width) for i in (0, 1))
    bounds = _integers.clipped_tensors(minval, maxval, dtype, key.device)
    return _integers.between(high, low, *bounds, dtype)


def permutation(
    key: Tensor,
    x: int | Tensor,
    axis: int = 0,
    independent: bool = False,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return a random order of `range(x)`, or of the slices of a tensor along an axis.

    The elements are sorted by random words, repeatedly, so that ties are improbable (once for fewer than
    1,626 elements).

    Args:
        key: a single key, int32 `(2,)`.
        x: an integer, or a tensor of at least one dimension.
        axis: the axis along which a tensor is shuffled.
        independent: shuffle each vector along `axis` separately.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        int64 `(x,)`, or a tensor like `x`: equal to `jax.random.permutation`.

    Raises:
        ValueError: for a tensor without dimensions, or an array of keys (`torch.vmap` over them
            instead).

    >>> from ftrain.core.random import key
    >>> permutation(key(0), 5)
    tensor([0, 1, 4, 3, 2])
    """
    _check_single(key, "permutation")
    _folds(folds)
    if not isinstance(x, Tensor):
        if x < 0:
            raise ValueError(
                f"permutation: expected x to be an int >= 0, got {x!r}. Pass the number of elements."
            )
        return _order(key, x, folds)
    if x.ndim == 0:
        raise ValueError(
            "permutation: expected x to be an int or a tensor with at least one axis, got a 0-d tensor. "
            "Pass x.item() to permute range(x)."
        )
    if independent or x.ndim == 1:
        return _shuffle(key, x, axis, folds)
    return x.index_select(axis, _order(key, x.shape[axis], folds))


def _order(key: Tensor, n: int, folds: Sequence[int]) -> Tensor:
    """Return a random order of `range(n)`."""
    orders = _orders(key, (n,), 0, folds)
    found = next(orders, None)
    if found is None:
        return torch.arange(n, device=key.device)
    for order in orders:
        found = found.gather(0, order)
    return found


def _shuffle(key: Tensor, x: Tensor, axis: int, folds: Sequence[int]) -> Tensor:
    for order in _orders(key, x.shape, axis, folds):
        x = x.gather(axis, order)
    return x


def _orders(key: Tensor, shape: Sequence[int], axis: int, folds: Sequence[int]) -> Iterator[Tensor]:
    """Yield random orders along an axis, to be applied one after the other."""
    path = tuple(folds)
    for _ in range(_integers.sorting_rounds(math.prod(shape))):
        words = _operators.threefry_bits(key, (*path, 1), shape, 32)  # key, subkey = split(key)
        path = (*path, 0)
        yield (of_same_bits(words, torch.int32) ^ -(2**31)).sort(dim=axis, stable=True).indices


def _shape(shape: int | Sequence[int], name: str) -> Sequence[int]:
    """Return a shape as a sequence; raise, naming the sampler, unless it consists of integers >= 0."""
    size = shape if isinstance(shape, (tuple, list)) else (shape,)
    for n in size:
        if type(n) is not int or n < 0:
            _check_length(n, shape, name)
    return size


def _check_length(n: Any, shape: Any, name: str) -> None:
    if isinstance(n, torch.SymInt):
        return
    try:
        is_valid = operator.index(n) >= 0  # integers of NumPy, 0-d tensors
    except TypeError:
        raise TypeError(
            f"{name}: expected shape to be an integer or a tuple of integers, got {shape!r}. Write "
            f"{name}(..., shape=(2, 3))."
        ) from None
    if not is_valid:
        raise ValueError(
            f"{name}: expected shape to consist of integers >= 0, got {shape!r}. Write the number of "
            f"samples along each axis, {name}(..., shape=(2, 3))."
        )


def _bound(value: int) -> int:
    try:
        return operator.index(value)  # integers of NumPy too
    except TypeError:
        raise TypeError(
            f"randint: expected bounds that are integers or integer tensors, got {value!r}. Write an "
            "integer."
        ) from None


def _check_float(dtype: torch.dtype, name: str) -> None:
    if dtype not in _FLOATS:
        raise ValueError(
            f"{name}: expected dtype to be float32, float64, bfloat16 or float16, got {dtype}. Write "
            "dtype=torch.float32."
        )


def _check_broadcast(name: str, size: Sequence[int], *parameters: Tensor) -> None:
    for parameter in parameters:
        found = parameter.shape
        pairs = zip(reversed(found), reversed(size), strict=False)
        if len(found) > len(size) or any(have not in (1, want) for have, want in pairs):
            raise ValueError(
                f"{name}: expected parameters that broadcast to the result's shape {tuple(size)}, got "
                f"one of shape {tuple(found)}. Pass a larger shape, or reshape the parameter."
            )
