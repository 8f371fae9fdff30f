"""Gamma, beta and Dirichlet draws from keys, differentiable in their parameters.

A sample is an implicit function of its parameters: `dx / dalpha = -(dF / dalpha) / f` with the
distribution function F and its density f (Figurnov, Mohamed and Mnih, "Implicit reparameterization
gradients", NeurIPS 2018). The derivative is torch's approximation, with a relative error of 5e-4; second
derivatives raise. `ftrain.compile` traces draws and derivatives; torch.compile (2.13) traces draws only.

Read next: `_jax_samplers.py`, the sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ftrain.core.random import _jax_families
from ftrain.core.random._exact import exact
from ftrain.core.random._parameters import filled, tensors_of
from ftrain.core.random.keys import _check_single, _folds
from ftrain.core.random.sample import _check_broadcast, _shape

__all__ = ["beta", "dirichlet", "gamma"]


def gamma(
    key: Tensor,
    a: float | Tensor,
    shape: int | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return Gamma(a, 1) floats, of density `x^(a - 1) exp(-x) / Gamma(a)`.

    Args:
        key: a single key, int32 `(2,)`.
        a: shape parameter, positive; a number or a tensor that broadcasts to `shape`. A negative,
            infinite or NaN value gives NaN.
        shape: the shape of the result; default: the shape of `a`.
        dtype: float32 or float64; default: that of a tensor `a`, float32 for a number.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `shape` and `dtype`, differentiable in `a`. For `a` from 0.5 to 1e4, samples are
        within a relative distance of 200 eps of `jax.random.gamma`, except where rounding changes which
        proposal is accepted (1 float32 sample in 10^6; more for `a` above 1e5). For a small `a`, a
        sample x is near `u^(1 / a)`: the distance is `8 eps max(1, |log x|)`, and some samples underflow
        to 0.

    Raises:
        ValueError: for another dtype, `a` that does not broadcast to `shape`, or an array of keys
            (`torch.vmap` over them instead).
        NotImplementedError: in the second derivative with respect to `a`.
        RuntimeError: if 1,000 proposals in a row are rejected; on CUDA, such a sample is NaN.

    References:
        Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 26 (2000).

    >>> from ftrain.core.random import key
    >>> gamma(key(0), 2.0, (2,))
    tensor([1.5898, 1.7599])
    """
    _check_single(key, "gamma")
    _, (alpha,) = filled("gamma", key, (a,), shape, dtype)
    return _jax_families.gamma(key, _folds(folds), alpha)


def beta(
    key: Tensor,
    a: float | Tensor,
    b: float | Tensor,
    shape: int | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return Beta(a, b) floats in [0, 1], of density proportional to `x^(a - 1) (1 - x)^(b - 1)`.

    Computed as `x / (x + y)` of gamma samples x and y, from their logarithms.

    Args:
        key: a single key, int32 `(2,)`.
        a: first parameter, positive; a number or a tensor that broadcasts to `shape`.
        b: second parameter, like `a`.
        shape: the shape of the result; default: that to which `a` and `b` broadcast.
        dtype: float32 or float64; default: that of the tensors, float32 for numbers.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `shape` and `dtype`, differentiable in `a` and `b`. For parameters from 0.5 to 100,
        samples are within a relative distance of 200 eps of `jax.random.beta` (see `gamma`).

    Raises:
        ValueError: for another dtype, parameters that do not broadcast to `shape`, or an array of keys
            (`torch.vmap` over them instead).
        NotImplementedError: in the second derivative with respect to a parameter.

    >>> from ftrain.core.random import key
    >>> beta(key(0), 2.0, 3.0, (2,))
    tensor([0.2363, 0.4905])
    """
    _check_single(key, "beta")
    _, parameters = filled("beta", key, (a, b), shape, dtype)
    folds = _folds(folds)
    logs = [_jax_families.log_gamma(key, (*folds, i), alpha) for i, alpha in enumerate(parameters)]
    value = _jax_families.share(*(log.detach() for log in logs))
    return exact(value, lambda: torch.sigmoid(logs[0] - logs[1]), *logs)


def dirichlet(
    key: Tensor,
    alpha: Tensor,
    shape: int | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    *,
    folds: Sequence[int] = (),
) -> Tensor:
    """Return Dirichlet(alpha) vectors, of density proportional to `prod x_i^(alpha_i - 1)`.

    Computed as gamma samples over their sum, from their logarithms.

    Args:
        key: a single key, int32 `(2,)`.
        alpha: `(..., n)`, positive.
        shape: the shape of the result without its last dimension n; `alpha` broadcasts to it. Default:
            `alpha.shape[:-1]`.
        dtype: float32 or float64; default: that of `alpha`.
        folds: integers in [0, 2^32) to fold into the key first.

    Returns:
        A tensor of `dtype` and shape `(*shape, n)`, with a last dimension that sums to 1, differentiable
        in `alpha`. For parameters from 0.5 to 100, samples are within a relative distance of 200 eps of
        `jax.random.dirichlet` (see `gamma`).

    Raises:
        ValueError: for another dtype, `alpha` without dimensions or that does not broadcast to
            `(*shape, n)`, or an array of keys (`torch.vmap` over them instead).
        NotImplementedError: in the second derivative with respect to `alpha`.

    >>> from ftrain.core.random import key
    >>> dirichlet(key(0), torch.ones(3))
    tensor([0.3647, 0.4283, 0.2070])
    """
    _check_single(key, "dirichlet")
    if not isinstance(alpha, Tensor) or alpha.ndim == 0 or not alpha.shape[-1]:
        raise ValueError(
            f"dirichlet: expected alpha to be a tensor (..., n) of n >= 1, got {alpha!r}. Write "
            "torch.full((n,), alpha) for n equal parameters."
        )
    (parameters,) = tensors_of("dirichlet", key, (alpha,), dtype)
    size = alpha.shape if shape is None else (*_shape(shape, "dirichlet"), alpha.shape[-1])
    _check_broadcast("dirichlet", size, parameters)
    logs = _jax_families.log_gamma(key, _folds(folds), parameters.expand(size))
    value = _jax_families.softmax(logs.detach())
    return exact(value, lambda: torch.softmax(logs, -1), logs)
