"""Comparison of recorded leaves (digests and norms) of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ftrain.testing.divergence.trace import TensorRecord

__all__ = ["differing", "is_far", "listed", "rows_that_differ"]

_LISTED = 3


def is_far(a: TensorRecord, b: TensorRecord, relative: float) -> bool:
    """Return True if two recorded tensors differ; floats may differ by the relative norm `relative`."""
    if a.digest == b.digest:
        return False
    floats = "float" in a.dtype and "float" in b.dtype
    return not floats or a.distance(b) > relative


def differing(
    a: Mapping[str, TensorRecord], b: Mapping[str, TensorRecord], relative: float
) -> list[str]:
    """Return the paths of the leaves that differ, or that only one run has."""
    return [
        path
        for path in dict.fromkeys((*a, *b))
        if path not in a or path not in b or is_far(a[path], b[path], relative)
    ]


def listed(names: Sequence[str]) -> str:
    """Join the first few names for a message, and append the number of the remaining ones.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def rows_that_differ(a: Sequence[str], b: Sequence[str]) -> str:
    """Describe which rows of a batch differ, from their digests; "" if that is unknown.

    >>> rows_that_differ(["x", "y", "z"], ["x", "z", "y"])
    'rows 1, 2 differ: B has the rows of A in another order'
    """
    if len(a) != len(b) or not a:
        return ""
    rows = [i for i, (one, two) in enumerate(zip(a, b, strict=True)) if one != two]
    if not rows:
        return ""
    numbers = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    text = f"rows {numbers} differ" if len(rows) > 1 else f"row {numbers} differs"
    same = sorted(a) == sorted(b)
    return f"{text}: B has the rows of A in another order" if same else text
