"""Division of a tree's rows into chunks of equal size (the last may be smaller), and a scan over them.

Read next: `grad_cache.py`, which encodes a batch chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ftrain.core import tree
from ftrain.core._words import kind
from ftrain.core.accumulate import check_constants
from ftrain.core.scan import scan
from ftrain.tasks.adapters import named_entries

__all__ = ["Chunks", "cut", "each", "entry", "over"]


class Chunks(NamedTuple):
    """Rows of a tree, cut into chunks.

    Attributes:
        tensors: the tensors of the tree with axes, `(rows, ...)`.
        structure: the structure of the tree.
        constants: the other leaves, by their position among all leaves; they are part of each chunk.
        rows: the number of rows.
        size: the number of rows of a chunk; the last may have fewer.
    """

    tensors: list[Tensor]
    structure: tree.TreeDef
    constants: dict[int, Any]
    rows: int
    size: int

    @property
    def whole(self) -> int:
        """Number of full chunks: those that have `size` rows."""
        return self.rows // self.size

    @property
    def number(self) -> int:
        """Number of chunks, including a shorter last one."""
        return -(-self.rows // self.size)

    def build(self, tensors: list[Tensor]) -> Any:
        """Return one chunk as a tree, given its rows of each tensor in the tree."""
        rows = iter(tensors)
        count = len(tensors) + len(self.constants)
        leaves = [self.constants[i] if i in self.constants else next(rows) for i in range(count)]
        return tree.unflatten(self.structure, leaves)

    def stacked(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the rows of all full chunks, reshaped to `(number of full chunks, size, ...)`."""
        end = self.whole * self.size
        return [x[:end].reshape(self.whole, self.size, *x.shape[1:]) for x in tensors]

    def last(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the remaining rows, after all full chunks."""
        return [x[self.whole * self.size :] for x in tensors]


def entry(batch: Any, name: str | int | None) -> Any:
    """Return the entry of a batch called `name`, the input of the encoder of that name."""
    named = named_entries(batch)
    if (
        isinstance(name, int)
        and isinstance(batch, (tuple, list))
        and -len(batch) <= name < len(batch)
    ):
        return batch[name]
    if named is not None and name in named:
        return named[name]  # type: ignore[index]  # a mapping has keys of any kind
    got = list(named) if named is not None else f"a {type(batch).__name__}"
    raise KeyError(
        f"batch: expected an entry {name!r} for the encoder of that name, got {got}. Name the encoders "
        "as the entries of the batch, or pass one function of the whole batch."
    )


def cut(batch: Any, size: int, what: str) -> Chunks:
    """Cut the tensors of a tree along their first axis into chunks of `size` rows.

    0-d tensors and constants go to every chunk.

    Args:
        batch: the tree.
        size: the number of rows of a chunk, at least 1.
        what: the tree's name in messages.

    Raises:
        ValueError: no tensor has an axis, there are no rows, or two tensors differ in their number of
            rows.
        TypeError: the tree has a leaf that cannot be cut: an object, or a list of numbers or strings.
    """
    leaves, structure = tree.flatten(batch)
    paths = tree.paths(batch)
    places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.ndim]
    if not places:
        raise ValueError(
            f"{what}: expected a tensor with a first axis to cut into chunks, got none. Pass tensors "
            "with one entry for each row."
        )
    rows = len(leaves[places[0]])
    for i in places:
        if len(leaves[i]) != rows or not rows:
            wanted = "rows" if not rows else f"{rows} rows as in {what}{paths[places[0]]}"
            raise ValueError(
                f"{what}{paths[i]}: expected {wanted}, got {kind(leaves[i])}. Entries with other "
                "numbers of rows need an encoder of their own: {name: encoder}."
            )
    check_constants(batch, f"chunks of {what}")
    constants = {i: x for i, x in enumerate(leaves) if i not in set(places)}
    return Chunks([leaves[i] for i in places], structure, constants, rows, min(size, rows))


Body = Callable[[Any, Tensor, Any, list[Tensor]], tuple[Any, Any]]


def over(
    body: Body, carry: Any, chunks: Chunks, keys: Tensor, more: list[Tensor] | None = None
) -> tuple[Any, Any]:
    """Scan a function over chunks; return the last carry, and the results concatenated by rows.

    For the chunks of equal length the body is compiled once, independently of their number.

    Args:
        body: a pure function `(carry, key, chunk, more) -> (carry, results)`; results are a tree of
            tensors, one entry for each row of the chunk, or an empty tree.
        carry: the first value of `carry`, which each call returns for the next one.
        chunks: the chunks.
        keys: a key for each chunk, `(number, 2)`.
        more: further tensors, `(rows, ...)`, cut like the chunks.
    """
    more = more or []
    inputs, given = chunks.stacked(chunks.tensors), chunks.stacked(more)
    joined: list[Any] = []
    if chunks.whole == 1:
        carry, out = body(
            carry, keys[0], chunks.build([x[0] for x in inputs]), [x[0] for x in given]
        )
        joined.append(out)
    else:

        def scanned(carry: Any, x: Any) -> tuple[Any, Any]:
            key, tensors, others = x
            return body(carry, key, chunks.build(tensors), others)

        carry, out = scan(scanned, carry, (keys[: chunks.whole], inputs, given))
        joined.append(tree.map(lambda x: x.flatten(0, 1), out))
    if chunks.number > chunks.whole:
        last = chunks.build(chunks.last(chunks.tensors))
        carry, out = body(carry, keys[chunks.whole], last, chunks.last(more))
        joined.append(out)
    if len(joined) == 1:
        return carry, joined[0]
    return carry, tree.map(lambda *parts: torch.cat(parts), *joined)


def each(chunks: Chunks) -> list[Any]:
    """Return the chunks as trees."""
    parts = zip(*(torch.split(x, chunks.size) for x in chunks.tensors), strict=True)
    return [chunks.build(list(part)) for part in parts]
