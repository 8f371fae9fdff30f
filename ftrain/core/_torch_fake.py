"""Shapes of operators that torch's own fake kernels refuse; part of `_torch.py`, by the same rules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses import fake_impls

__all__ = ["fake_kernels"]


@contextlib.contextmanager
def fake_kernels() -> Iterator[None]:
    """Give fake tensors kernels for these operators (`op_implementations_dict`, 2.2 and later).

    Without the dict, the operators are refused as torch refuses them.
    """
    known: dict[Any, Any] = getattr(fake_impls, "op_implementations_dict", {})
    added = {operator: kernel for operator, kernel in _kernels().items() if operator not in known}
    known.update(added)
    try:
        yield
    finally:
        for operator in added:
            known.pop(operator, None)


def _kernels() -> dict[Any, Any]:
    grouped = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)
    return {} if grouped is None else {grouped: _grouped_mm}


def _grouped_mm(
    mode: Any,
    func: Any,
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the result's shape of a mixture of experts; torch's kernel takes bfloat16 only (2.13).

    Rows of the result begin at multiples of 16 bytes.
    """
    rows, columns = a.shape[-2], b.shape[-1]
    if a.ndim == b.ndim == 2:
        assert offs is not None  # torch has checked it
        size = [offs.shape[0], rows, columns]
    else:
        size = [rows, columns] if 2 in (a.ndim, b.ndim) else [a.shape[0], rows, columns]
    dtype = out_dtype or a.dtype
    aligned = 16 // dtype.itemsize
    row = -(-columns // aligned) * aligned
    strides = [rows * row, row, 1][-len(size) :]
    with mode:
        return torch.empty_strided(size, strides, dtype=dtype, device=a.device)
