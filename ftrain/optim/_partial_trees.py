"""Parts of a tree: omitted leaves are replaced by markers, so that paths stay the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.optim._leaves import compute_dtype
from ftrain.optim.protocol import PyTree

__all__ = ["Masked", "narrowed", "part", "unchanged"]


class Masked(NamedTuple):
    """Marker of an omitted leaf: a tree node without leaves (`torch.vmap` counts `None` as a leaf)."""


def part(values: PyTree, keep: Sequence[bool]) -> PyTree:
    """Return the tree with `Masked()` in place of each leaf that is not kept.

    Example:
        >>> part({"a": 1, "b": 2}, [True, False])
        {'a': 1, 'b': Masked()}
    """
    flat, treedef = tree.flatten(values)
    kept = [leaf if wanted else Masked() for leaf, wanted in zip(flat, keep, strict=True)]
    return tree.unflatten(treedef, kept)


def narrowed(
    extra: Mapping[str, Any], params: PyTree | None, keep: Sequence[bool]
) -> dict[str, Any]:
    """Return the extra arguments of `update`, adapted to an optimizer of some of the parameters.

    Functions of all parameters become functions of the part; the other parameters keep their
    values.
    """
    found = dict(extra)
    if params is None:
        return found
    flat, treedef = tree.flatten(params)

    def whole(some: PyTree) -> PyTree:
        mine = iter(tree.leaves(some))
        return tree.unflatten(
            treedef, [next(mine) if kept else leaf for leaf, kept in zip(flat, keep, strict=True)]
        )

    value_fn, grad_fn = found.get("value_fn"), found.get("grad_fn")
    if value_fn is not None:
        found["value_fn"] = lambda some: value_fn(whole(some))
    if grad_fn is not None:
        found["grad_fn"] = lambda some: part(grad_fn(whole(some)), keep)
    return found


def unchanged(leaf: torch.Tensor) -> torch.Tensor:
    """Return an update of `-0.0` in every element; adding it keeps all bits, even those of `-0.0`."""
    return torch.full_like(leaf, -0.0, dtype=compute_dtype(leaf.dtype))
