"""Rows of a leaf that one rank holds, and the layout of a state on a rank.

A layout is a mapping from leaf paths (as `tree.paths` writes them) to a `Shard`; leaves that are not in
the layout are whole on every rank. Read next: `manifest.py`, the records of pieces of leaves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._words import did_you_mean

__all__ = ["Layout", "Shard", "check_layout", "full_strides", "rows_of"]


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rows `start` to `start + rows - 1` of a leaf, along its first axis.

    A local tensor with more than `rows` rows is padded; the rows after the first `rows` are neither
    saved nor loaded.

    Attributes:
        shape: the shape of the whole leaf.
        start: the index of the first row.
        rows: the number of rows, 0 if the rank holds none.

    Raises:
        ValueError: the leaf has no axis, or fewer rows than the shard needs.

    Example:
        >>> Shard((10, 3), start=8, rows=2)
        Shard(shape=(10, 3), start=8, rows=2)
    """

    shape: tuple[int, ...]
    start: int
    rows: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape:
            raise ValueError(
                "shape: expected at least one axis, got (). Leave scalars out of the layout: they "
                "are whole on every rank."
            )
        if not (self.start >= 0 and self.rows >= 0 and self.start + self.rows <= self.shape[0]):
            raise ValueError(
                f"start, rows: expected rows within 0 to {self.shape[0]}, got start {self.start} and "
                f"rows {self.rows}. Give a rank without rows start 0 and rows 0."
            )

    @staticmethod
    def even(shape: tuple[int, ...], rank: int, ranks: int) -> Shard:
        """Return a rank's shard of evenly divided rows; with a remainder, the last ranks have fewer.

        Example:
            >>> [Shard.even((5,), rank, 4).rows for rank in range(4)]
            [2, 2, 1, 0]
        """
        most = -(-shape[0] // ranks)
        start = min(rank * most, shape[0])
        return Shard(shape, start, min(most, shape[0] - start))


Layout = Mapping[str, Shard]


def rows_of(shape: tuple[int, ...]) -> int:
    """Return the number of rows of a leaf; a scalar counts as one row."""
    return shape[0] if shape else 1


def check_layout(state: Any, layout: Layout) -> None:
    """Raise unless every path of a layout names a leaf of the state that can hold the shard's rows.

    Raises:
        ValueError: a path is unknown, or a leaf has another shape; the message names the path.
    """
    leaves = dict(zip(tree.paths(state), tree.leaves(state), strict=True))
    for path, shard in layout.items():
        if path not in leaves:
            raise ValueError(
                f"layout: expected paths of leaves, got {path!r}.{did_you_mean(path, leaves)} Write "
                "paths as ftrain.tree.paths(state) does."
            )
        shape = tuple(leaves[path].shape)
        if len(shape) != len(shard.shape) or shape[1:] != shard.shape[1:] or shape[0] < shard.rows:
            raise ValueError(
                f"layout[{path!r}]: expected a local tensor with {shard.rows} rows or more of shape "
                f"{list(shard.shape[1:])}, got shape {list(shape)}. Pass the layout of this rank."
            )


def full_strides(local: torch.Tensor, shard: Shard) -> tuple[int, ...] | None:
    """Return the strides of the whole leaf, or `None` if the rows of a shard interleave in memory.

    Args:
        local: the rank's tensor.
        shard: the rows in it; at least one.
    """
    if math.prod(shard.shape) == 0:
        return tuple(torch.empty(shard.shape, device="meta").stride())
    first, *rest = local.stride()
    if shard.rows == shard.shape[0]:
        return (first, *rest)
    extent = 1 + sum((n - 1) * stride for n, stride in zip(shard.shape[1:], rest, strict=True))
    if shard.rows == 1:
        first = extent
    return (first, *rest) if first >= extent else None
