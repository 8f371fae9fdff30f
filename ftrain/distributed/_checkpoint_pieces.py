"""Plan of a checkpoint that several ranks write: the pieces of each leaf, and each piece's writer.

Pure functions of the descriptions that ranks give of their states. Read next: `save.py`, which carries
out the plan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ftrain.checkpoint import _structure, _tensors
from ftrain.checkpoint._draft import Collected, content_of
from ftrain.checkpoint.errors import CheckpointMismatchError
from ftrain.checkpoint.shard import Layout, Shard, check_layout, full_strides, rows_of
from ftrain.core import tree
from ftrain.distributed.sharding import Sharding, layout_of

__all__ = [
    "LocalLeaf",
    "Piece",
    "Vote",
    "check_same",
    "describe",
    "local_leaves",
    "merge",
    "plan",
    "votes",
]

#: Bytes of the largest piece, unless one row has more. A rank that loads some rows may read up to one
#: piece too much at each end.
_MOST_IN_A_PIECE = 64 << 20

Vote = tuple[int, int, int, "list[int] | None", "int | None"]
_ABSTAINS = -1


class LocalLeaf(NamedTuple):
    """Description of a leaf of a state on one rank.

    Attributes:
        path: the path of the leaf in the state.
        dtype: the name of the dtype.
        shape: the shape of the whole leaf.
        strides: the strides of the whole leaf; `None` if unknown, because this rank has no rows.
        start: the index of the first row on this rank.
        rows: the number of rows on this rank.
        alias: the index of an earlier leaf that is the same tensor; `None`: there is none; -1: unknown
            on this rank.
        whole: True if this rank has all rows, because the layout does not name the leaf.
        tensor: the rows on this rank.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    start: int
    rows: int
    alias: int | None
    whole: bool
    tensor: torch.Tensor

    def part(self, piece: Piece) -> torch.Tensor | None:
        """Return the leaf's rows that `piece` describes; `None` if some of them are not on this rank."""
        if not self.shape:
            return self.tensor
        first = piece.start - self.start
        if first < 0 or first + piece.rows > self.rows:
            return None
        return self.tensor[first : first + piece.rows]


class Piece(NamedTuple):
    """Rows of a leaf that are written as one tensor.

    Attributes:
        leaf: the index of the leaf.
        start: the index of the first row.
        rows: the number of rows.
        writer: the rank that writes the rows.
    """

    leaf: int
    start: int
    rows: int
    writer: int


def local_leaves(content: Collected, layout: Layout | Sharding) -> list[LocalLeaf]:
    """Describe the leaves of a state on this rank.

    Raises:
        ValueError: the layout does not fit the state, or the rows of a shard interleave in memory.
    """
    state = tree.unflatten(content.structure, content.leaves)
    layout = layout_of(layout, state)
    check_layout(state, layout)
    paths = tree.paths(state)
    if len(set(paths)) != len(paths):
        raise ValueError(
            "state: expected leaves with different paths, got two equal paths, because two keys of a "
            "dict have the same repr(). Rename one of the keys."
        )
    first: dict[Any, int] = {}
    found = []
    for index, (path, tensor) in enumerate(zip(paths, content.leaves, strict=True)):
        shard = layout.get(path)
        shape: tuple[int, ...] = tuple(tensor.shape) if shard is None else shard.shape
        alias: int | None = None
        if shard is not None and not shard.rows and 0 not in shape:
            alias = _ABSTAINS
        elif tensor.numel():
            same = first.setdefault((content_of(tensor), shard), index)
            alias = None if same == index else same
        start, rows = (0, rows_of(shape)) if shard is None else (shard.start, shard.rows)
        dtype = str(_tensors.name_of(tensor.dtype))
        strides = _strides(path, tensor, shard)
        found.append(
            LocalLeaf(path, dtype, shape, strides, start, rows, alias, shard is None, tensor)
        )
    return found


def _strides(path: str, tensor: torch.Tensor, shard: Shard | None) -> tuple[int, ...] | None:
    if shard is None:
        return tuple(tensor.stride())
    if not shard.rows and 0 not in shard.shape:
        return None
    strides = full_strides(tensor, shard)
    if strides is None:
        raise ValueError(
            f"the leaf at {path}: expected a shard whose rows follow one another in memory, got strides "
            f"{tuple(tensor.stride())}. Call contiguous() on the shard."
        )
    return strides


def describe(content: Collected, leaves: Sequence[LocalLeaf]) -> dict[str, Any]:
    """Return, as JSON values, the properties of a state that must be equal on all ranks."""
    state = tree.unflatten(content.structure, content.leaves)
    return {
        "structure": _structure.describe(state),
        "leaves": [[leaf.path, leaf.dtype, list(leaf.shape), *_of_whole(leaf)] for leaf in leaves],
        **{name: content.rest[name] for name in ("step", "metrics", "metadata")},
    }


def _of_whole(leaf: LocalLeaf) -> tuple[Any, Any]:
    return (list(leaf.strides or ()), leaf.alias) if leaf.whole else (None, None)


def check_same(own: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Raise unless this rank's state and rank 0's have equal properties (`own` and `reference`).

    Raises:
        CheckpointMismatchError: the values differ; the message names the first difference.
    """
    difference = _structure.first_difference(reference["structure"], own["structure"])
    if difference is not None:
        raise CheckpointMismatchError(
            "expected a state of the same structure as on rank 0, got another structure: "
            + difference.replace("the checkpoint", "rank 0").replace("`like`", "this rank")
            + ". Create the states of all ranks alike."
        )
    names = ("path", "dtype", "shape", "strides", "alias")
    for theirs, ours in zip(reference["leaves"], own["leaves"], strict=True):
        for name, wanted, got in zip(names, theirs, ours, strict=True):
            if wanted != got:
                raise CheckpointMismatchError(
                    f"the leaf at {ours[0] or 'the root'}: expected the {name} {wanted}, as on rank 0, "
                    f"got {got}. Create the states of all ranks alike."
                )
    for name in ("step", "metrics", "metadata"):
        if repr(own[name]) != repr(reference[name]):  # a NaN equals itself only as text
            raise CheckpointMismatchError(
                f"{name}: expected {_short(reference[name])}, as on rank 0, got {_short(own[name])}. "
                f"Pass the same {name} on every rank."
            )


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 200 else text[:200] + "..."


def votes(leaves: Sequence[LocalLeaf]) -> list[Vote]:
    """Return this rank's report of each sharded leaf: its rows, strides and the leaf it is tied to."""
    return [
        (i, leaf.start, leaf.rows, list(leaf.strides) if leaf.strides else None, leaf.alias)
        for i, leaf in enumerate(leaves)
        if not leaf.whole
    ]


def merge(
    leaves: Sequence[LocalLeaf], ballots: Sequence[Sequence[Vote]]
) -> list[tuple[tuple[int, ...], int | None]]:
    """Return each leaf's strides, and the leaf it is tied to, from the reports of all ranks.

    Raises:
        CheckpointMismatchError: two ranks report different strides or aliases of a leaf.
    """
    found = [(leaf.strides, leaf.alias) for leaf in leaves]
    voter: dict[int, int] = {}
    # The distance between rows is unknown to a rank with a single row: such ranks vote last.
    cast = [(vote, rank) for rank, ballot in enumerate(ballots) for vote in ballot]
    for (index, _, rows, strides, alias), rank in sorted(cast, key=lambda each: each[0][2] == 1):
        if alias != _ABSTAINS:
            vote = tuple(strides or ()), alias
            if index not in voter:
                voter[index], found[index] = rank, vote
                continue
            leaf, known = leaves[index], found[index]
            if rows == 1:
                vote = ((known[0] or ())[:1] + vote[0][1:], alias)
            if known[1] != alias or not _tensors.same_strides(leaf.shape, known[0] or (), vote[0]):
                raise CheckpointMismatchError(
                    f"the leaf at {leaf.path}: expected the same strides and tied leaves on all ranks, "
                    f"got strides {known[0]} and {'a' if known[1] is not None else 'no'} tied leaf on "
                    f"rank {voter[index]}, strides {vote[0]} and {'a' if alias is not None else 'no'} "
                    f"tied leaf on rank {rank}. Create the states of all ranks alike."
                )
    return [
        (_row_major(leaf.shape), None) if strides is None else (tuple(strides), alias)
        for leaf, (strides, alias) in zip(leaves, found, strict=True)
    ]


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(torch.empty(shape, device="meta").stride())


def plan(
    leaves: Sequence[LocalLeaf], aliases: Sequence[int | None], ballots: Sequence[Sequence[Vote]]
) -> list[Piece]:
    """Divide the leaves into pieces, and choose the rank that writes each piece.

    Args:
        leaves: the leaves on rank 0.
        aliases: for each leaf, the index of an earlier leaf that is the same tensor, or `None`. A leaf
            with such an index is not written.
        ballots: the votes of each rank.

    Raises:
        CheckpointMismatchError: the shards of a leaf overlap, or lack some of its rows.
    """
    held: list[dict[tuple[int, int], list[int]]] = [{} for _ in leaves]
    for rank, ballot in enumerate(ballots):
        mine = {index: (start, rows) for index, start, rows, _, _ in ballot}
        for index, leaf in enumerate(leaves):
            first, count = mine.get(index, (0, rows_of(leaf.shape)))
            if count:
                held[index].setdefault((first, count), []).append(rank)
            elif not rows_of(leaf.shape):
                held[index].setdefault((0, 0), []).append(rank)
    found: list[tuple[int, int, int, list[int]]] = []
    for index, (leaf, alias) in enumerate(zip(leaves, aliases, strict=True)):
        if alias is None:
            _check_cover(leaf, held[index])
            for (first, count), ranks in sorted(held[index].items()):
                parts = _split(leaf, first, count)
                found += [(index, start, rows, ranks) for start, rows in parts]
    size = [rows * _row_bytes(leaves[index]) for index, _, rows, _ in found]
    load, writers = [0] * len(ballots), [0] * len(found)
    # Pieces that one rank alone holds come first, then the largest. Each goes to the rank that holds it
    # and has the fewest bytes to write.
    for i in sorted(range(len(found)), key=lambda i: (len(found[i][3]) > 1, -size[i], i)):
        writers[i] = min(found[i][3], key=lambda rank: (load[rank], rank))
        load[writers[i]] += size[i]
    return [Piece(*piece[:3], writer) for piece, writer in zip(found, writers, strict=True)]


def _check_cover(leaf: LocalLeaf, held: Mapping[tuple[int, int], list[int]]) -> None:
    end, before = 0, "the first row"
    for (start, rows), ranks in sorted(held.items()):
        if start != end:
            break
        end, before = start + rows, f"the rows of rank {ranks[0]}"
    else:
        if end == rows_of(leaf.shape):
            return
        start, ranks = end, []
    got = f"row {start} of rank {ranks[0]}" if ranks else "nothing"
    raise CheckpointMismatchError(
        f"the leaf at {leaf.path}: expected shards that contain each of its {rows_of(leaf.shape)} rows "
        f"once, with row {end} after {before}, got {got}. Check the layout on each rank."
    )


def _split(leaf: LocalLeaf, start: int, rows: int) -> list[tuple[int, int]]:
    most = max(1, _MOST_IN_A_PIECE // max(1, _row_bytes(leaf)))
    if rows <= most:
        return [(start, rows)]
    ends = [*range(start, start + rows, most), start + rows]
    return [(a, b - a) for a, b in itertools.pairwise(ends)]


def _row_bytes(leaf: LocalLeaf) -> int:
    return math.prod(leaf.shape[1:]) * leaf.tensor.element_size()
