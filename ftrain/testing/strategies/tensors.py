"""Hypothesis strategy of tensors: any shape, dtype and memory layout, with special values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from hypothesis.strategies import SearchStrategy

__all__ = ["tensors"]

Strides = Literal["contiguous", "any"]

_NUMPY: dict[torch.dtype, Any] = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: np.float32,  # NumPy has no bfloat16: numbers are drawn in float32, then rounded
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}
_BOUND = 8.0  # default bound of values: sums, products and exponentials of a few stay finite


def tensors(
    shape: Sequence[int] | SearchStrategy[Any] | None = None,
    dtype: torch.dtype | SearchStrategy[torch.dtype] = torch.float32,
    *,
    min_value: float | None = None,
    max_value: float | None = None,
    allow_nan: bool = False,
    allow_infinity: bool = False,
    allow_subnormal: bool = False,
    allow_negative_zero: bool = False,
    strides: Strides = "contiguous",
) -> SearchStrategy[torch.Tensor]:
    """Return a strategy of tensors on the CPU, which shrink to few elements, zeros and row-major layout.

    Args:
        shape: the shape, or a strategy of shapes; default: up to 3 axes of up to 4 elements.
        dtype: the dtype, or a strategy of dtypes: a float of 16 bits or more, an integer or bool.
        min_value: the smallest finite value; default: -8 (0 for an unsigned dtype).
        max_value: the largest finite value; default: 8.
        allow_nan: True to draw NaN too, in any dtype that has it.
        allow_infinity: True to draw both infinities too.
        allow_subnormal: True to draw subnormal numbers of the dtype too.
        allow_negative_zero: True to draw -0.0 too.
        strides: "contiguous", or "any": permuted axes, gaps between elements, an offset in the storage.

    Raises:
        ValueError: the dtype is not supported, or no value is within the bounds.

    Example:
        >>> from hypothesis import find
        >>> find(tensors(dtype=torch.bfloat16, allow_nan=True), lambda x: bool(x.isnan().any()))
        tensor(nan, dtype=torch.bfloat16)
    """
    if strides not in ("contiguous", "any"):
        raise ValueError(
            f"strides: expected 'contiguous' or 'any', got {strides!r}. Write one of them."
        )
    if isinstance(dtype, torch.dtype):
        _bounds(dtype, min_value, max_value)
    special = (allow_nan, allow_infinity, allow_subnormal, allow_negative_zero)

    @st.composite
    def drawn(draw: Any) -> torch.Tensor:
        sizes = tuple(draw(_as_strategy(shape, _shapes())))
        kind = draw(_as_strategy(dtype, st.nothing()))
        low, high = _bounds(kind, min_value, max_value)
        elements = _elements(kind, low, high, special)
        array = draw(arrays.arrays(_NUMPY[kind], sizes, elements=elements, fill=elements))
        if kind.is_floating_point and not allow_negative_zero:
            array = array + np.zeros((), array.dtype)  # -0.0 + 0.0 is 0.0
        tensor = torch.from_numpy(np.array(array)).to(kind)
        return tensor if strides == "contiguous" else draw(_laid_out(tensor))

    return drawn()


def _as_strategy(value: Any, default: SearchStrategy[Any]) -> SearchStrategy[Any]:
    if isinstance(value, SearchStrategy):
        return value
    return default if value is None else st.just(value)


def _shapes() -> SearchStrategy[tuple[int, ...]]:
    return arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def _bounds(
    dtype: torch.dtype, min_value: float | None, max_value: float | None
) -> tuple[float, float]:
    """Return the smallest and the largest value of the dtype that lie within the bounds."""
    if dtype not in _NUMPY:
        known = ", ".join(str(each).removeprefix("torch.") for each in _NUMPY)
        raise ValueError(f"dtype: expected one of {known}, got {dtype}. Pass one of them.")
    if dtype == torch.bool:
        return 0, 1
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    low = max(-_BOUND if min_value is None else min_value, info.min)
    high = min(max(_BOUND, low) if max_value is None else max_value, info.max)
    if min_value is None:
        low = min(low, high)
    if not dtype.is_floating_point:
        low, high = math.ceil(low), math.floor(high)
    else:
        low, high = _representable(low, dtype, up=True), _representable(high, dtype, up=False)
    if not low <= high:
        raise ValueError(
            f"min_value, max_value: expected bounds with a value of {dtype} between them, got "
            f"{min_value} and {max_value}. Widen them."
        )
    return low, high


def _representable(bound: float, dtype: torch.dtype, *, up: bool) -> float:
    """Return the nearest value of the dtype that is >= `bound` if `up`, else <= `bound`."""
    rounded = torch.tensor(bound, dtype=torch.float64).to(dtype)
    if (rounded.double() < bound) if up else (rounded.double() > bound):
        toward = torch.tensor(math.inf if up else -math.inf, dtype=dtype)
        rounded = torch.nextafter(rounded, toward)
    return rounded.item()


def _elements(
    dtype: torch.dtype, low: float, high: float, special: tuple[bool, bool, bool, bool]
) -> SearchStrategy[Any]:
    if dtype == torch.bool:
        return st.booleans()
    if not dtype.is_floating_point:
        return st.integers(int(low), int(high))
    nan, infinity, subnormal, negative_zero = special
    smallest = torch.finfo(dtype).smallest_normal
    # Numbers of bfloat16 are drawn in float32, which has the same exponents, within bounds of bfloat16.
    width: Any = np.dtype(_NUMPY[dtype]).itemsize * 8
    finite = [
        st.floats(a, b, width=width, allow_subnormal=False)
        for a, b in ((max(low, 0.0), high), (low, min(high, 0.0)))
        if a <= b and not (0 < abs(b) < smallest or 0 < abs(a) < smallest)
    ]
    extra: list[float] = []
    extra += [math.nan] if nan else []
    extra += [math.inf, -math.inf] if infinity else []
    extra += [-0.0] if negative_zero else []
    tiny = smallest * torch.finfo(dtype).eps  # the smallest positive number of the dtype
    if subnormal:
        tinies = (tiny, smallest - tiny, -tiny, tiny - smallest)
        extra += [x for x in tinies if low <= x <= high]
    if not finite and not extra:
        return st.sampled_from([low, high])
    return st.one_of(*finite, *([st.sampled_from(extra)] if extra else []))


@st.composite
def _laid_out(draw: Any, tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy whose axes are permuted in memory, with gaps and an offset."""
    order = draw(st.permutations(range(tensor.ndim)))
    gaps = [draw(st.integers(1, 2)) for _ in order]
    offset = draw(st.integers(0, 3))
    stride, run = [0] * tensor.ndim, 1
    for axis in reversed(order):
        stride[axis] = run * gaps[axis]
        run = stride[axis] * max(tensor.shape[axis], 1)
    buffer = torch.zeros(offset + run, dtype=tensor.dtype)
    return buffer.as_strided(tensor.shape, stride, offset).copy_(tensor)
