"""Which parameters a transformation touches: trees of bools, and functions that make them.

A mask depends on structure, shapes and names, never on values: it is read in Python, once for each
trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ftrain.core import tree
from ftrain.optim.protocol import PyTree

__all__ = ["Mask", "everything", "mask_leaves", "matrices"]

Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree]
"""A tree of bools of the parameters' structure, or a function from parameters to one."""


def matrices(params: PyTree) -> PyTree:
    """True for what has two or more dimensions: not for biases, gains and scalars.

    >>> import torch
    >>> matrices({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
    {'weight': True, 'bias': False}
    """
    return tree.map(lambda p: p.ndim >= 2, params)


def everything(params: PyTree) -> PyTree:
    """True for every parameter.

    >>> import torch
    >>> everything({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
    {'weight': True, 'bias': True}
    """
    return tree.map(lambda p: True, params)


def mask_leaves(mask: Mask, params: PyTree) -> list[bool]:
    """The mask's bools in the order of the parameters' leaves.

    Raises:
        ValueError: the mask's structure is not that of `params`.
        TypeError: an entry is not a bool.
    """
    bools = mask(params) if callable(mask) else mask
    flat, treedef = tree.flatten(bools)
    if treedef != tree.structure(params):
        raise ValueError(
            f"the mask's structure is not that of the parameters, "
            f"{tree.first_difference(params, bools)}. Give one bool for each parameter, or a "
            "function of the parameters such as `optim.matrices` or `optim.everything`."
        )
    for path, entry in zip(tree.paths(bools), flat, strict=True):
        if not isinstance(entry, bool):
            raise TypeError(
                f"the mask at {path or 'the root'} is {type(entry).__name__} {entry!r}; it must be "
                "True or False, known before any tensor is (compare shapes and names, not values)."
            )
    return flat
