"""Comparison of trees by their bytes, reporting the first difference.

`torch.equal` calls `0.0` and `-0.0` equal and a NaN unequal to itself; bytes do neither.
"""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree

__all__ = ["assert_close_norm", "assert_same_bits", "describe_difference"]


def assert_same_bits(found: Any, expected: Any, message: str = "trees differ") -> None:
    """Raise unless two trees have the same structure, dtypes, shapes and bytes.

    Raises:
        AssertionError: with the first leaf that differs, and the size of the difference.

    >>> assert_same_bits({"x": torch.tensor(0.0)}, {"x": torch.tensor(-0.0)})
    Traceback (most recent call last):
        ...
    AssertionError: trees differ: ['x']: 1 of 1 elements, first at (): 0.0 against -0.0
    """
    difference = describe_difference(found, expected)
    assert difference is None, f"{message}: {difference}"


def describe_difference(found: Any, expected: Any) -> str | None:
    """Return the first difference of two trees in structure, dtype, shape or bytes, or `None`."""
    structural = tree.first_difference(expected, found)
    if structural is not None:
        return structural
    for path, a, b in zip(
        tree.paths(found), tree.leaves(found), tree.leaves(expected), strict=True
    ):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return f"{path}: {a.dtype}{list(a.shape)} against {b.dtype}{list(b.shape)}"
        one, two = (x.detach().cpu().clone(memory_format=torch.contiguous_format) for x in (a, b))
        size = one.element_size()
        same = (_bytes(one) == _bytes(two)).reshape(-1, size).all(dim=1)
        if not bool(same.all()):
            first = int((~same).nonzero()[0])
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(first), one.shape))
            return (
                f"{path or 'the tree'}: {int((~same).sum())} of {same.numel()} elements, first at "
                f"{index}: {one.reshape(-1)[first].item()} against {two.reshape(-1)[first].item()}"
            )
    return None


def assert_close_norm(
    found: Any, expected: Any, relative: float, message: str = "trees differ"
) -> None:
    r"""Raise unless $\lVert x - y \rVert \le r \lVert y \rVert$ over whole trees, in float64.

    Raises:
        AssertionError: with the relative distance found.
    """
    structural = tree.first_difference(expected, found)
    assert structural is None, f"{message}: {structural}"
    distance, size = 0.0, 0.0
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        a64, b64 = a.detach().cpu().double(), b.detach().cpu().double()
        distance += float((a64 - b64).square().sum())
        size += float(b64.square().sum())
    apart = (distance / size) ** 0.5 if size else float(distance != 0)
    assert apart <= relative, f"{message}: relative distance {apart:.3g}, at most {relative:.3g}"


def _bytes(t: torch.Tensor) -> torch.Tensor:
    return t.reshape(-1).view(torch.uint8)
