"""Torch operators that draw uniforms and integers between bounds given as tensors, in one CUDA kernel.

On other devices `sample.py` composes such a draw of operators that a compiler can fuse.

Read next: `_cuda_samplers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core.random import _cuda_samplers, _floats, _integers, _operators, _threefry
from ftrain.core.random._families import _define, _rows

Ints = Sequence[int]


def _uniform_kernel(key: Tensor, folds: Ints, low: Tensor, high: Tensor) -> Tensor:
    if kernel := _cuda_samplers.kernel_of(key):
        return _cuda_samplers.uniform(kernel, key, folds, low, high)
    shape = low.shape[key.ndim - 1 :]
    unit = _operators._uniform(key, folds, shape, low.dtype, 0.0, 1.0)
    return _floats.scale(unit, low, high)


def _randint_kernel(
    key: Tensor, folds: Ints, minval: Tensor, maxval: Tensor, dtype: torch.dtype
) -> Tensor:
    shape = minval.shape[key.ndim - 1 :]
    if kernel := _cuda_samplers.kernel_of(key):
        out = _operators._drawn(key, shape, dtype)
        return _cuda_samplers.randint(kernel, key, folds, minval, maxval, out)
    width = max(32, _integers.WIDTH[dtype])
    high, low = (_threefry.bits(key, (*folds, i), shape, width) for i in (0, 1))
    bounds = _integers.clipped_tensors(minval, maxval, dtype, key.device)
    return _integers.between(high, low, *bounds, dtype)


def _randint_rule(
    info: Any,
    dims: Any,
    key: Tensor,
    folds: Ints,
    minval: Tensor,
    maxval: Tensor,
    dtype: torch.dtype,
) -> Any:
    rows = _rows(info.batch_size, (dims[0], *dims[2:4]), (key, minval, maxval))
    return randint(rows[0], folds, *rows[1:], dtype), 0


uniform = _define("uniform_between", "Tensor low, Tensor high", _uniform_kernel)
randint = _operators._define(
    "threefry_randint_between(Tensor key, int[] folds, Tensor minval, Tensor maxval, "
    "ScalarType dtype)",
    _randint_kernel,
    lambda key, folds, minval, maxval, dtype: key.new_empty(minval.shape, dtype=dtype),
    _randint_rule,
)
