"""Checks and copies of the values that the bodies of loops and branches take and return."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ftrain.core import tree
from ftrain.core._words import kind

__all__ = ["apart", "check_carry", "check_tensors", "closure", "own_memory"]

T = TypeVar("T")


def check_tensors(function: str, what: str, value: Any) -> list[torch.Tensor]:
    """Return the leaves of a tree of tensors.

    Raises:
        TypeError: a leaf is not a tensor.
    """
    leaves = tree.leaves(value)
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor):
            raise TypeError(
                f"{function}: {what}{tree.paths(value)[i]} is {type(leaf).__name__} {leaf!r}, not a "
                "tensor. Wrap numbers in torch.tensor(...)."
            )
    return leaves


def check_carry(function: str, old: Any, new: Any) -> None:
    """Raise unless a body returned the carry with the structure, shapes and dtypes that it was given.

    Raises:
        TypeError: a leaf is not a tensor.
        ValueError: structure, a shape or a dtype differs; the message names the path.
    """
    difference = tree.first_difference(old, new)
    if difference is not None:
        raise ValueError(
            f"{function}: the carry that body returns is built differently: {difference}"
        )
    check_tensors(function, "carry", new)
    for path, before, after in zip(
        tree.paths(old), tree.leaves(old), tree.leaves(new), strict=True
    ):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ValueError(
                f"{function}: carry{path} goes in as {kind(before)} and comes out as {kind(after)}. "
                "Start with the shape and dtype that body returns."
            )


def closure(*functions: Callable[..., Any]) -> list[torch.Tensor]:
    """Return the tensors that functions capture by themselves."""
    found = []
    for function in functions:
        for cell in getattr(function, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # a name that is not bound yet
                found.append(cell.cell_contents)
    return [value for value in found if isinstance(value, torch.Tensor)]


def apart(value: T, given: Sequence[torch.Tensor]) -> T:
    """Return a tree with clones of the leaves that share memory with `given`, or with another leaf."""
    taken = {_storage(tensor) for tensor in given}

    def own(leaf: torch.Tensor) -> torch.Tensor:
        storage = _storage(leaf)
        if storage is None or storage in taken:
            return leaf.clone()
        taken.add(storage)
        return leaf

    return tree.map(own, value)  # type: ignore[no-any-return]  # a tree like `value`


def own_memory(value: Any, given: Any) -> Any:
    """Return a tree with clones of the tensors that share memory with a tensor of `given`.

    >>> x = torch.zeros(3)
    >>> own_memory((x[1:], "a"), x)[0].untyped_storage().data_ptr() == x.data_ptr()
    False
    """
    leaves, treedef = tree.flatten(value)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    tensors = [leaf for leaf in tree.leaves(given) if isinstance(leaf, torch.Tensor)]
    for place, leaf in zip(places, apart([leaves[i] for i in places], tensors), strict=True):
        leaves[place] = leaf
    return tree.unflatten(treedef, leaves)


def _storage(tensor: torch.Tensor) -> int | None:
    """Return the identity of a tensor's storage; `None` under torch.func transforms, which hide it."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None
