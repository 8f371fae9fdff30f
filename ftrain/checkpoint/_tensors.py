"""Conversion of tensors to bytes and back: dtype names, memory layouts, new aligned storage.

A safetensors file holds each tensor dense, in row-major order. The manifest records its strides,
and loading allocates memory with these strides. Bits that are computed from a tensor depend on its
alignment: memory from torch's allocator is always aligned alike, a view into a file is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = [
    "by_name",
    "empty",
    "fill",
    "in_header",
    "memory_of",
    "name_of",
    "row_major",
    "same_strides",
    "stored_as",
]

# Names of dtypes in a safetensors header.
_NATIVE = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
}
# Dtypes that safetensors lacks: stored as bytes with one more axis; the manifest has their names.
_AS_BYTES = (torch.complex32, torch.complex128)

_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in (*_NATIVE, *_AS_BYTES)}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_FROM_HEADER = {name: dtype for dtype, name in _NATIVE.items()}


def name_of(dtype: torch.dtype) -> str | None:
    """Return the name of a dtype, such as `"float32"`; `None` if checkpoints cannot store the dtype."""
    return _NAMES.get(dtype)


def by_name(name: str) -> torch.dtype | None:
    """Return the torch dtype of a name such as `"float32"`; `None` for an unknown name."""
    return _DTYPES.get(name)


def in_header(name: str) -> torch.dtype | None:
    """Return the torch dtype for a name in a safetensors header, such as `"F32"`; `None` if unknown."""
    return _FROM_HEADER.get(name)


def stored_as(dtype: torch.dtype, shape: Sequence[int]) -> tuple[str, list[int]]:
    """Return the dtype name and shape that a safetensors header lists for a tensor of `dtype`."""
    if dtype in _NATIVE:
        return _NATIVE[dtype], list(shape)
    return "U8", [*shape, dtype.itemsize]


def row_major(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order, without a copy if it is contiguous on the CPU."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    if plain.numel() < 2 or not plain.is_contiguous():
        # contiguous() would return a (1,) with stride 2 unchanged, which cannot be viewed as bytes.
        plain = plain.clone(memory_format=torch.contiguous_format)
    return memory_of(plain)


def memory_of(dense: torch.Tensor) -> memoryview:
    """Return a writable view of the bytes of a row-major CPU tensor."""
    if dense.numel() == 0:
        return memoryview(bytearray())
    flat = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
    return flat.numpy().data


def empty(
    shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Allocate a tensor with these strides; elements may share memory, as after `expand`."""
    if math.prod(shape) == 0:
        return torch.empty_strided(shape, strides, dtype=dtype, device=device)
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    return torch.empty(extent, dtype=dtype, device=device).as_strided(shape, strides)


def fill(target: torch.Tensor, dense: torch.Tensor) -> None:
    """Copy row-major values into a tensor of any layout."""
    for axis, (n, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if stride == 0 and n > 1:  # torch refuses to write to an expanded axis
            target, dense = target.narrow(axis, 0, 1), dense.narrow(axis, 0, 1)
    target.copy_(dense)


def same_strides(shape: Sequence[int], one: Sequence[int], two: Sequence[int]) -> bool:
    """Return True if two tuples of strides put every element of a shape at the same place."""
    if math.prod(shape) == 0:
        return True
    return all(n == 1 or a == b for n, a, b in zip(shape, one, two, strict=True))
