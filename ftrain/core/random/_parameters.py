"""Parameters of distributions: numbers or tensors, expanded to the shape and dtype of the result.

Read next: `gammas.py`, which uses them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ftrain.core.random._cuda_samplers import device_of_numbers
from ftrain.core.random._threefry import broadcast
from ftrain.core.random.sample import _check_broadcast, _shape

Parameter = float | Tensor


def filled(
    name: str,
    key: Tensor,
    parameters: Sequence[Parameter],
    shape: int | Sequence[int] | None,
    dtype: torch.dtype | None,
) -> tuple[Sequence[int], list[Tensor]]:
    """Return the shape of the result, and the parameters expanded to this shape, in the result's dtype.

    The default shape is the one to which the parameters broadcast. The default dtype is the promoted
    dtype of the floating-point tensors among them; float32 if there are none.
    """
    tensors = tensors_of(name, key, parameters, dtype)
    if shape is None:
        try:
            size: Sequence[int] = broadcast(*(t.shape for t in tensors))
        except RuntimeError as error:
            shapes = " and ".join(str(tuple(t.shape)) for t in tensors)
            raise ValueError(
                f"{name}: expected parameters that broadcast to one shape, got {shapes}. Reshape one "
                "of them."
            ) from error
    else:
        size = _shape(shape, name)
        _check_broadcast(name, size, *tensors)
    return size, [t.expand(size) for t in tensors]


def tensors_of(
    name: str, key: Tensor, parameters: Sequence[Parameter], dtype: torch.dtype | None
) -> list[Tensor]:
    """Return the parameters as tensors of one floating dtype on the key's device."""
    given = [p for p in parameters if isinstance(p, Tensor)]
    for tensor in given:
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise ValueError(
                f"{name}: expected parameters of real numbers, got {tensor.dtype}. Convert them to "
                "float32."
            )
    if dtype is None:
        dtype = torch.float32
        floats = [p.dtype for p in given if p.is_floating_point()]
        for i, found in enumerate(floats):
            dtype = torch.promote_types(dtype, found) if i else found
    check_wide(dtype, name)
    return [
        p.to(dtype) if isinstance(p, Tensor) else scalar(name, p, dtype, key) for p in parameters
    ]


def scalar(name: str, value: float, dtype: torch.dtype, key: Tensor) -> Tensor:
    """Return a parameter that is a number as a 0-d tensor; raise if the dtype cannot hold it."""
    try:
        return torch.full((), value, dtype=dtype, device=device_of_numbers(key))
    except TypeError:
        raise TypeError(
            f"{name}: expected numbers or tensors as parameters, got {value!r}. Write a number."
        ) from None
    except (RuntimeError, OverflowError):
        if not isinstance(value, (int, float)):
            raise
        raise ValueError(
            f"{name}: expected parameters within the range of {dtype}, up to "
            f"{torch.finfo(dtype).max:.4g}, got {value!r:.40}. Write a number in this range, or "
            "math.inf for infinity."
        ) from None


def check_wide(dtype: torch.dtype, name: str) -> None:
    """Raise unless the dtype is float32 or float64."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name}: expected dtype to be float32 or float64, got {dtype}. Draw in float32 and convert "
            "the sample."
        )
