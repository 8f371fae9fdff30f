"""Draws of vectors and matrices from keys: multivariate normal, orthogonal matrices, points of a ball.

Factorizations are computed by LAPACK, so their last bits depend on the machine. Everything else has the
same bits on every machine, as in `continuous.py`.

Read next: `_jax_vectors.py`, the operators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ftrain.core.random import _jax_vectors
from ftrain.core.random._exact import exact
from ftrain.core.random._parameters import check_wide, tensors_of
from ftrain.core.random._threefry import broadcast
from ftrain.core.random.keys import _check_single, _folds
from ftrain.core.random.sample import _check_broadcast, _shape, normal

__all__ = ["ball", "multivariate_normal", "orthogonal"]


def multivariate_normal(
    key: Tensor,
    mean: Tensor,
    cov: Tensor,
    shape: int | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return normal vectors `mean + L z`, where `L L^T = cov` (Cholesky) and z is standard normal.

    JAX can also factorize by `eigh` and `svd`. The signs of these factors depend on the library, so
    ftrain does not offer them. Add a small multiple of the identity to a singular covariance.

    Args:
        key: a single key, int32 `(2,)`.
        mean: `(..., n)`.
        cov: `(..., n, n)`, positive definite; `(cov + cov^T) / 2` is used. A matrix that is not positive
            definite gives NaN.
        shape: the shape of the result without its last dimension n; default: that to which the leading
            dimensions of `mean` and `cov` broadcast.
        dtype: float32 or float64; default: that of the tensors.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `dtype` and shape `(*shape, n)`, differentiable in `mean` and `cov`, within a
        relative norm of 4 eps of `jax.random.multivariate_normal` for well-conditioned covariances.

    Raises:
        ValueError: for another dtype, shapes that do not fit, or an array of keys (`torch.vmap` over
            them instead).

    >>> from ftrain.core.random import key
    >>> multivariate_normal(key(0), torch.zeros(2), torch.eye(2))
    tensor([1.6226, 2.0253])
    """
    _check_single(key, "multivariate_normal")
    for name, value, least in (("mean", mean, 1), ("cov", cov, 2)):
        if not isinstance(value, Tensor) or value.ndim < least:
            got = tuple(value.shape) if isinstance(value, Tensor) else value
            raise ValueError(
                f"multivariate_normal: expected {name} to be a tensor of at least {least} dimension"
                f"{'s'[: least - 1]}, got {got!r}. Add the missing dimension."
            )
    n = mean.shape[-1]
    if tuple(cov.shape[-2:]) != (n, n):
        raise ValueError(
            f"multivariate_normal: expected cov to be (..., {n}, {n}), for a mean of "
            f"{tuple(mean.shape)}, got {tuple(cov.shape)}. Pass a square matrix of the mean's length."
        )
    mean, cov = tensors_of("multivariate_normal", key, (mean, cov), dtype)
    if shape is None:
        shape = broadcast(mean.shape[:-1], cov.shape[:-2])
    size = (*_shape(shape, "multivariate_normal"), n)
    _check_broadcast("multivariate_normal", size, mean, cov.diagonal(dim1=-2, dim2=-1))
    lower, info = torch.linalg.cholesky_ex((cov + cov.mT) / 2)
    lower = torch.where((info == 0)[..., None, None], lower, math.nan)
    z = normal(key, size, cov.dtype, folds=folds)
    drawn = _jax_vectors.product(lower.detach().expand(*size, n), z)
    return exact(
        mean.detach() + drawn,
        lambda: mean + (lower @ z.unsqueeze(-1)).squeeze(-1),
        *(mean, lower),
    )


def orthogonal(
    key: Tensor,
    n: int,
    shape: int | Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    m: int | None = None,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return orthogonal matrices `(n, n)` of uniform (Haar) distribution, or semi-orthogonal `(n, m)`.

    The result is Q of a QR decomposition of normal draws, with each column multiplied by the sign of R's
    diagonal entry.

    Args:
        key: a single key, int32 `(2,)`.
        n: the number of rows.
        shape: leading dimensions of the result.
        dtype: float32 or float64.
        m: the number of columns; default: n. With n <= m the rows are orthonormal, else the columns.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `dtype` and shape `(*shape, n, m)`, within `4 n eps` of `jax.random.orthogonal`
        (measured for n up to 64).

    Raises:
        ValueError: for another dtype, a negative size, or an array of keys (`torch.vmap` over them
            instead).

    References:
        Mezzadri, "How to generate random matrices from the classical compact groups", Notices of the AMS
        54 (2007).

    >>> from ftrain.core.random import key
    >>> q = orthogonal(key(0), 3)
    >>> torch.testing.assert_close(q @ q.T, torch.eye(3))
    """
    _check_single(key, "orthogonal")
    check_wide(dtype, "orthogonal")
    columns = n if m is None else m
    if n < 0 or columns < 0:
        raise ValueError(
            f"orthogonal: expected n and m to be 0 or more, got {n} and {columns}. Pass positive sizes."
        )
    size = (*_shape(shape, "orthogonal"), max(n, columns), min(n, columns))
    q, r = torch.linalg.qr(normal(key, size, dtype, folds=folds))
    x: Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return x.mT if n < columns else x


def ball(
    key: Tensor,
    d: int,
    p: float = 2.0,
    shape: int | Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return uniform points of the unit ball of dimension d, `sum |x_i|^p <= 1`.

    Args:
        key: a single key, int32 `(2,)`.
        d: dimension of the ball.
        p: exponent of the norm, positive and finite, a number.
        shape: leading dimensions of the result.
        dtype: float32 or float64.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `dtype` and shape `(*shape, d)`, within 64 eps of `jax.random.ball` for p from 0.5 to
        5, in the mode (with or without `jax_enable_x64`) in which JAX has the dtype. For larger p,
        coordinates are computed from logarithms; in JAX they underflow to 0, a third of them for p = 100
        in float32.

    Raises:
        ValueError: for another dtype, p or d out of range, or an array of keys (`torch.vmap` over them
            instead).

    References:
        Barthe, Guédon, Mendelson and Naor, "A probabilistic approach to the geometry of the l_p^n-ball",
        Annals of Probability 33 (2005).

    >>> from ftrain.core.random import key
    >>> bool(ball(key(0), 3).norm() <= 1)
    True
    """
    _check_single(key, "ball")
    check_wide(dtype, "ball")
    if not isinstance(p, int | float) or not 0 < p < math.inf:
        raise ValueError(f"ball: expected p to be a positive finite number, got {p!r}. Write p=2.")
    if d < 0:
        raise ValueError(f"ball: expected d to be 0 or more, got {d}. Pass a positive dimension.")
    return _jax_vectors.ball(key, _folds(folds), _shape(shape, "ball"), dtype, d, float(p))
