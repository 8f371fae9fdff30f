"""Torch operators that draw points of a ball, and that multiply normal vectors by a matrix.

As in `_jax_families.py`, each row of a result equals the draw from that row's key alone.

Read next: `_jax_samplers.py`, whose `gamma` a ball is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core.random import _cuda_samplers, _elementary, _jax_families, _jax_samplers, _operators
from ftrain.core.random._families import _rows, _wide

Ints = Sequence[int]

_MOST_POWER = (
    5.0  # above, |x|^p underflows, of float32 x below 0.03 at p = 30; JAX draws zeros then
)


def _ball_kernel(
    key: Tensor, folds: Ints, shape: Ints, dtype: torch.dtype, d: int, p: float
) -> Tensor:
    size = (*shape, d)
    if kernel := _cuda_samplers.kernel_of(key):
        return _cuda_samplers.ball(kernel, key, folds, _operators._drawn(key, size, dtype), p)
    alpha = torch.full((*key.shape[:-1], *size), 1.0 / p, dtype=dtype, device=key.device)
    is_positive = _operators._uniform(key, (*folds, 0, 1), size, dtype, 0.0, 1.0) < 0.5
    beyond = _wide(_jax_families._exponential_kernel(key, (*folds, 1), shape, dtype))
    in_logs = p > _MOST_POWER
    powers = _wide(_jax_samplers.gamma(key, (*folds, 0, 0), alpha, in_logs))  # |x|^p
    logs, powers = (powers, _elementary.exp(powers)) if in_logs else (None, powers)
    norm = _elementary.total(powers) + beyond
    if logs is None:
        radius = _elementary.power(powers / norm.unsqueeze(-1), 1.0 / p).to(dtype)
    else:
        radius = _elementary.exp((logs - _elementary.log(norm).unsqueeze(-1)) / p).to(dtype)
    return torch.where(is_positive, radius, -radius)


ball = _operators._define(
    "threefry_ball(Tensor key, int[] folds, SymInt[] shape, ScalarType dtype, SymInt d, float p)",
    _ball_kernel,
    lambda key, folds, shape, dtype, d, p: _operators._drawn(key, (*shape, d), dtype),
)


def _product_kernel(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return `matrix @ vector`, added column after column: the same bits for any number of rows."""
    if kernel := _cuda_samplers.kernel_of(vector):
        return _cuda_samplers.product(kernel, matrix, vector)
    out = torch.zeros_like(vector, memory_format=torch.contiguous_format)
    for column, x in zip(matrix.unbind(-1), vector.unbind(-1), strict=True):
        out += column * x.unsqueeze(-1)
    return out


def _product_rule(info: Any, dims: Any, matrix: Tensor, vector: Tensor) -> Any:
    return product(*_rows(info.batch_size, dims, (matrix, vector))), 0


product = _operators._define(
    "row_product(Tensor matrix, Tensor vector)",
    _product_kernel,
    lambda matrix, vector: torch.empty_like(vector, memory_format=torch.contiguous_format),
    _product_rule,
)
