"""Assertions that two pytrees are equal in bytes, or close in norm.

Read next: `difference.py`, the comparison.
"""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree
from ftrain.testing.difference import first_difference

__all__ = ["assert_close_norm", "assert_same_bits", "describe_difference", "relative_distance"]


def assert_same_bits(got: Any, expected: Any, message: str = "trees differ") -> None:
    """Raise unless two trees have the same structure, dtypes, shapes and bytes.

    Raises:
        AssertionError: with the first leaf that differs, and the size of the difference.

    >>> assert_same_bits({"x": torch.tensor(0.0)}, {"x": torch.tensor(-0.0)})
    Traceback (most recent call last):
        ...
    AssertionError: trees differ: ['x'] at (): expected -0.0, got 0.0 (0 ulps; 1 of 1 elements differ)
    """
    difference = first_difference(got, expected)
    if difference is not None:
        raise AssertionError(f"{message}: {difference}")


def describe_difference(got: Any, expected: Any) -> str | None:
    """Return the first difference of two trees in structure, dtype, shape or bytes, or `None`."""
    difference = first_difference(got, expected)
    return None if difference is None else str(difference)


def assert_close_norm(
    got: Any, expected: Any, relative: float, message: str = "trees differ"
) -> None:
    r"""Raise unless $\lVert x - y \rVert \le r \lVert y \rVert$ for two trees as vectors in float64.

    Raises:
        AssertionError: with the relative distance.
    """
    structural = tree.first_difference(got, expected)
    if structural is not None:
        raise AssertionError(f"{message}: {structural}")
    apart = relative_distance(got, expected)
    if not apart <= relative:  # also for NaN
        raise AssertionError(
            f"{message}: expected a relative distance of at most {relative:.3g}, got {apart:.3g}"
        )


def relative_distance(got: Any, expected: Any) -> float:
    """Return the norm of the difference of two trees, divided by the norm of the second, in float64."""
    distance, size = 0.0, 0.0
    for a, b in zip(tree.leaves(got), tree.leaves(expected), strict=True):
        a64, b64 = _double(a), _double(b)
        distance += float((a64 - b64).square().sum())
        size += float(b64.square().sum())
    return float((distance / size) ** 0.5 if size else float(distance != 0))


def _double(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64; a complex tensor as pairs of real and imaginary part."""
    plain = x.detach().cpu().resolve_conj()
    return (torch.view_as_real(plain) if plain.is_complex() else plain).double()
