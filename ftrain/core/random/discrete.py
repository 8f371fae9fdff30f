"""Draws of integers and of elements from keys: categorical, choice, Poisson and Rademacher.

Read next: `continuous.py`, whose `gumbel` decides between categories.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ftrain.core.random import _jax_families, _operators
from ftrain.core.random._parameters import check_wide, scalar
from ftrain.core.random.continuous import gumbel
from ftrain.core.random.keys import _check_single, _folds
from ftrain.core.random.sample import _check_broadcast, _check_float, _shape, permutation, randint

__all__ = ["categorical", "choice", "poisson", "rademacher"]


def categorical(
    key: Tensor,
    logits: Tensor,
    axis: int = -1,
    shape: int | Sequence[int] | None = None,
    replace: bool = True,
    mode: Literal["low", "high"] = "low",
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return random categories (indices along `axis`) with probabilities `softmax(logits, axis)`.

    A draw is the argmax of the logits plus Gumbel noise; draws without replacement are the largest of
    these sums.

    Args:
        key: a single key, int32 `(2,)`.
        logits: floats `(..., n, ...)`: unnormalized log probabilities. A category with -infinity is
            drawn only if too few other categories remain.
        axis: the axis of the categories.
        shape: the shape of the result. It ends in the shape of `logits` without `axis`, or in a shape to
            which that broadcasts; additional leading dimensions give further draws. Default: the shape
            of `logits` without `axis`.
        replace: if False, the draws along the leading dimensions of `shape` are distinct.
        mode: mode of `gumbel`; `"high"` for probabilities below 1e-7.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        An int64 tensor of `shape`, equal to `jax.random.categorical` except where two sums are within 4
        ulp of each other (none of 600,000 float32 draws from 10 categories).

    Raises:
        ValueError: for logits that are not floats, a `shape` that does not fit them, more draws without
            replacement than categories, or an array of keys (`torch.vmap` over them instead).

    References:
        Kool, van Hoof and Welling, "Stochastic beams and where to find them", ICML 2019.

    >>> from ftrain.core.random import key
    >>> categorical(key(0), torch.tensor([0.1, 0.2, 0.7]).log(), shape=(5,))
    tensor([1, 2, 2, 1, 2])
    """
    _check_single(key, "categorical")
    if not isinstance(logits, Tensor) or logits.ndim == 0:
        raise ValueError(
            f"categorical: expected logits to be a tensor (..., n), got {logits!r}. Pass one logit for "
            "each category."
        )
    _check_float(logits.dtype, "categorical")
    axis = _axis("categorical", axis, logits)
    if not logits.shape[axis]:
        raise ValueError(
            f"categorical: expected logits of at least one category, got shape {tuple(logits.shape)}. "
            "Choose an axis that is not empty."
        )
    logits = logits.detach().movedim(axis, -1)
    batch = logits.shape[:-1]
    size = tuple(batch if shape is None else _shape(shape, "categorical"))
    _check_broadcast("categorical", size, logits[..., 0])
    ahead = size[: len(size) - len(batch)]
    if replace:
        return _with_replacement(key, logits, axis, ahead, size, mode, folds)
    count = math.prod(ahead)
    if size[len(ahead) :] != batch:
        raise ValueError(
            "categorical: with replace=False, expected an argument `shape` that ends in "
            f"{tuple(batch)}, the shape of the logits without the axis of the categories, got {size}. "
            f"Pass shape=({', '.join(map(str, ('n', *batch)))}) for n draws."
        )
    if count > logits.shape[-1]:
        raise ValueError(
            f"categorical: expected at most {logits.shape[-1]} draws without replacement, one for each "
            f"category, got {count}. Pass replace=True."
        )
    noise = gumbel(key, _inserted(batch, axis, logits.shape[-1]), logits.dtype, mode, folds=folds)
    order = (logits + noise.movedim(axis, -1)).sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].movedim(-1, 0).reshape(size)


def _with_replacement(
    key: Tensor,
    logits: Tensor,
    axis: int,
    ahead: Sequence[int],
    size: Sequence[int],
    mode: Literal["low", "high"],
    folds: Sequence[int],
) -> Tensor:
    drawn = (*ahead, *_inserted(size[len(ahead) :], axis, logits.shape[-1]))
    noise = gumbel(key, drawn, logits.dtype, mode, folds=folds)
    return (noise.movedim(axis + len(ahead), -1) + logits).argmax(-1)


def choice(
    key: Tensor,
    a: int | Tensor,
    shape: int | Sequence[int] = (),
    replace: bool = True,
    p: Tensor | None = None,
    axis: int = 0,
    mode: Literal["low", "high"] = "low",
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return random elements of `range(a)`, or random slices of a tensor along an axis.

    Args:
        key: a single key, int32 `(2,)`.
        a: an integer, or a tensor of at least one dimension.
        shape: the shape of the draws.
        replace: if False, the draws are distinct.
        p: floats `(n,)`: the weight of each element; default: equal weights. Weights need not sum to 1.
            On the CPU, a negative, infinite or NaN weight raises, and so do weights that are all 0
            or, without replacement, fewer positive weights than draws (JAX draws elements of weight 0
            then; so does ftrain on other devices, where a check would wait for the device).
        axis: the axis of the tensor `a` along which slices are drawn.
        mode: the mode of `gumbel`, which is used for weighted draws without replacement.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        For an integer, an int64 tensor of `shape`. For a tensor, one of its dtype and of its shape with
        `axis` replaced by `shape`, differentiable in the tensor. Equal to `jax.random.choice` (under
        `jax_enable_x64`); with p, draws may differ if they are within 4 ulp of the boundary between two
        elements.

    Raises:
        ValueError: for no elements to choose from, too many draws without replacement, p of a wrong
            shape or dtype, weights as described above, or an array of keys (`torch.vmap` over them
            instead).

    >>> from ftrain.core.random import key
    >>> choice(key(0), 10, (3,), replace=False)
    tensor([0, 1, 8])
    """
    _check_single(key, "choice")
    size = tuple(_shape(shape, "choice"))
    if isinstance(a, Tensor):
        axis = _axis("choice", axis, a)
    count = a.shape[axis] if isinstance(a, Tensor) else a
    draws = math.prod(size)
    if draws and (count <= 0 or (not replace and draws > count)):
        kind = "with" if replace else "without"
        raise ValueError(
            f"choice: expected {1 if replace else draws} or more elements for {draws} draws {kind} "
            f"replacement, got {count}. Pass more elements, or draw fewer."
        )
    if p is None and not replace and isinstance(a, Tensor):
        return _inserted_slices(permutation(key, a, axis, folds=folds), axis, size, draws)
    if p is None:
        if replace:
            index = randint(key, size, 0, count, folds=folds)
        else:
            index = permutation(key, count, folds=folds)[:draws].reshape(size)
    else:
        index = _weighted(key, p, count, size, replace, mode, folds)
    if not isinstance(a, Tensor):
        return index
    return _inserted_slices(a.index_select(axis, index.reshape(-1)), axis, size, draws)


def _weighted(
    key: Tensor,
    p: Tensor,
    count: int,
    size: Sequence[int],
    replace: bool,
    mode: Literal["low", "high"],
    folds: Sequence[int],
) -> Tensor:
    """Return int64 indices of shape `size`, drawn with probabilities proportional to the weights `p`.

    With replacement, the cumulative sums of p are inverted. Without replacement, the indices of the
    largest values of log(p) plus Gumbel noise are taken.
    """
    if not isinstance(p, Tensor) or p.shape != (count,):
        got = tuple(p.shape) if isinstance(p, Tensor) else p
        raise ValueError(
            f"choice: expected p to be a tensor of shape ({count},), got {got!r}. Pass one weight for "
            "each element."
        )
    check_wide(p.dtype, "choice")
    p = p.detach()
    if replace:
        return _jax_families.choice(key, _folds(folds), size, p)
    draws = math.prod(size)
    logs = _jax_families.log_weights(p, draws)
    noisy: Tensor = gumbel(key, (count,), p.dtype, mode, folds=folds) + logs
    order = noisy.sort(dim=-1, descending=True, stable=True).indices
    return order[:draws].reshape(size)


def _inserted_slices(a: Tensor, axis: int, size: Sequence[int], draws: int) -> Tensor:
    """Return the first `draws` slices of `a` along `axis`, with this axis reshaped to `size`."""
    return a.narrow(axis, 0, draws).reshape((*a.shape[:axis], *size, *a.shape[axis + 1 :]))


def poisson(
    key: Tensor,
    lam: float | Tensor,
    shape: int | Sequence[int] | None = None,
    dtype: torch.dtype = torch.int64,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return Poisson counts of rate `lam`; k has the probability `lam^k exp(-lam) / k!`.

    Args:
        key: a single key, int32 `(2,)`.
        lam: rate, from 0 to 2^62 (int32: 2^30); a number or a tensor that broadcasts to `shape`, rounded
            to float32 as in JAX.
        shape: the shape of the result; default: the shape of `lam`.
        dtype: int32 or int64.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `shape` and `dtype`, without a derivative. Equal to `jax.random.poisson` for rates up
        to 100. For higher rates, rounding changes which proposals are accepted: 6 counts in 100,000
        differ at a rate of 1,000, and 450 at 10^6. As in JAX, an element with a rate above 10 depends on
        the other elements of the array: each round of proposals replaces those accepted before. Where
        rounding changes the number of rounds, most counts of the array differ.

    Raises:
        ValueError: for a rate out of range or NaN, another dtype, a rate that does not broadcast
            to `shape`, or an array of keys (`torch.vmap` over them instead). On CUDA, where a check
            would wait for the device, a rate out of range gives -1.

    References:
        Hörmann, "The transformed rejection method for generating Poisson random variables", Insurance:
        Mathematics and Economics 12 (1993).

    >>> from ftrain.core.random import key
    >>> poisson(key(0), 4.0, (5,))
    tensor([0, 1, 5, 5, 2])
    """
    _check_single(key, "poisson")
    if dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"poisson: expected dtype to be int32 or int64, got {dtype}. Write dtype=torch.int64."
        )
    if isinstance(lam, Tensor):
        rate = lam.detach().to(torch.float32)
    else:
        rate = scalar("poisson", lam, torch.float32, key)
    size = rate.shape if shape is None else _shape(shape, "poisson")
    _check_broadcast("poisson", size, rate)
    return _jax_families.poisson(key, _folds(folds), rate.expand(size), dtype)


def rademacher(
    key: Tensor,
    shape: int | Sequence[int] = (),
    dtype: torch.dtype = torch.int64,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return -1 and 1, each with probability 1/2.

    Args:
        key: a single key, int32 `(2,)`.
        shape: the shape of the result.
        dtype: a signed integer or floating dtype.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `shape` and `dtype`, equal to `jax.random.rademacher` in the mode in which JAX has
        that dtype: for 64 bits under `jax_enable_x64` (one 64-bit word for each sign), for fewer bits
        without it (one 32-bit word).

    Raises:
        ValueError: for an unsigned or complex dtype or bool, or an array of keys (`torch.vmap` over them
            instead).

    >>> from ftrain.core.random import key
    >>> rademacher(key(0), (4,))
    tensor([ 1,  1, -1, -1])
    """
    _check_single(key, "rademacher")
    if dtype.is_complex or not dtype.is_signed:
        raise ValueError(
            f"rademacher: expected a signed integer or floating dtype, got {dtype}. Write "
            "dtype=torch.int32."
        )
    if key.is_cuda:
        return _jax_families.signs(key, _folds(folds), _shape(shape, "rademacher"), dtype)
    # JAX draws uniforms of its default float for `bernoulli(key, 0.5)`.
    uniform = torch.float64 if dtype.itemsize == 8 else torch.float32
    u = _operators.threefry_uniform(
        key, _folds(folds), _shape(shape, "rademacher"), uniform, 0.0, 1.0
    )
    return _jax_families.sign_of(u, dtype)


def _inserted(shape: Sequence[int], axis: int, count: int) -> tuple[int, ...]:
    return (*shape[:axis], count, *shape[axis:])


def _axis(name: str, axis: int, tensor: Tensor) -> int:
    if not -tensor.ndim <= axis < tensor.ndim:
        raise ValueError(
            f"{name}: expected axis to be in [-{tensor.ndim}, {tensor.ndim}), an axis of a tensor of "
            f"shape {tuple(tensor.shape)}, got {axis}. Write axis=-1 for the last one."
        )
    return axis % tensor.ndim
