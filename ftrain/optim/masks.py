"""Masks that select parameters: name patterns, trees of bools, and functions.

A mask depends on structure, shapes and names, never on values: it is read in Python, once for each
trace.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TypeAlias

import torch

from ftrain.core import tree
from ftrain.optim.protocol import PyTree

__all__ = ["Mask", "everything", "mask_leaves", "matching", "matrices", "names"]

Mask: TypeAlias = str | re.Pattern[str] | PyTree | Callable[[PyTree], PyTree] | None
"""A regular expression (compiled or not), searched for in each parameter's name (`"bias$"`); a tree of
bools of the parameters' structure; a function from parameters to such a tree; or None for all."""


def matrices(params: PyTree) -> PyTree:
    """Return a mask of all parameters with two or more dimensions (no biases, gains or scalars).

    Example:
        >>> import torch
        >>> matrices({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
        {'weight': True, 'bias': False}
    """
    return tree.map(_is_matrix, params)


def _is_matrix(parameter: torch.Tensor) -> bool:
    return parameter.ndim >= 2


def everything(params: PyTree) -> PyTree:
    """Return a mask of all parameters.

    Example:
        >>> import torch
        >>> everything({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
        {'weight': True, 'bias': True}
    """
    return tree.map(lambda p: True, params)


def matching(predicate: Callable[[str, torch.Tensor], bool]) -> Callable[[PyTree], PyTree]:
    """Return a mask function that selects the parameters for which `predicate(name, tensor)` is True.

    Args:
        predicate: `(name, parameter) -> bool`; the name is the keys, fields and indices on the way
            to it, joined by dots (as `nn.Module.named_parameters` has it). It may read shape and dtype,
            but not values.

    Example:
        >>> import torch
        >>> params = {"embed.weight": torch.zeros(9, 2), "head.weight": torch.zeros(3, 2)}
        >>> matching(lambda name, p: p.ndim >= 2 and "embed" not in name)(params)
        {'embed.weight': False, 'head.weight': True}
    """

    if not callable(predicate):
        raise TypeError(
            f"predicate: expected a function of name and parameter, got {predicate!r}. Pass a pattern "
            "of names as the mask itself, without `matching`."
        )

    def mask(params: PyTree) -> PyTree:
        flat, treedef = tree.flatten(params)
        return tree.unflatten(
            treedef, [predicate(*pair) for pair in zip(names(treedef), flat, strict=True)]
        )

    return mask


@functools.lru_cache(maxsize=256)
def names(treedef: tree.TreeDef) -> tuple[str, ...]:
    """Return the name of each leaf: the keys, fields and indices of its path, joined by dots."""
    return tuple(
        ".".join(str(getattr(entry, "field", entry.entry)) for entry in accessor)
        for accessor in treedef.accessors()
    )


def mask_leaves(mask: Mask, params: PyTree) -> list[bool]:
    """Return one bool per parameter leaf, in order, from a mask in any of its forms.

    Raises:
        ValueError: the mask's structure is not that of `params`; a pattern that no name contains.
        TypeError: an entry is not a bool.
    """
    if mask is None:
        return [True] * len(tree.leaves(params))
    if mask is matrices:  # the usual mask, without two more trees
        return [_is_matrix(p) for p in tree.leaves(params)]
    if isinstance(mask, (str, re.Pattern)):
        return list(_found(mask, tree.structure(params)))
    bools = mask(params) if callable(mask) else mask
    flat, treedef = tree.flatten(bools)
    if treedef != tree.structure(params):
        raise ValueError(
            f"mask: expected a tree with the structure of the parameters, got one that differs "
            f"{tree.first_difference(bools, params)}. Give one bool for each parameter, or a "
            "function of the parameters such as `optim.matrices` or `optim.everything`."
        )
    for index, entry in enumerate(flat):
        if not isinstance(entry, bool):
            path = tree.paths(bools)[index] or "the root"
            raise TypeError(
                f"the mask at {path}: expected True or False, got {type(entry).__name__} {entry!r}. "
                "Compute it from shapes and names, not from values."
            )
    return flat


@functools.lru_cache(maxsize=256)
def _found(pattern: str | re.Pattern[str], treedef: tree.TreeDef) -> tuple[bool, ...]:
    try:
        found = tuple(re.search(pattern, name) is not None for name in names(treedef))
    except re.error as error:
        raise ValueError(
            f"mask: expected a regular expression, got {pattern!r}: {error}. Correct the pattern."
        ) from error
    if found and not any(found):
        listed = ", ".join(names(treedef)[:5]) + (", ..." if len(found) > 5 else "")
        raise ValueError(
            f"mask: expected a pattern that occurs in a parameter's name, got {pattern!r}. The "
            f"{len(found)} names are: {listed}. Patterns are regular expressions, searched for anywhere "
            "in the name."
        )
    return found
