"""Optimizers for a part of the parameters: `masked`, `freeze` and `set_to_zero`.

Read next: `partition.py`, which combines several optimizers for several parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import tree
from ftrain.optim import _checks
from ftrain.optim._leaves import gradients, matching_leaves
from ftrain.optim._partial_trees import narrowed, part, unchanged
from ftrain.optim.masks import Mask, mask_leaves
from ftrain.optim.protocol import GradientTransformation, PyTree

__all__ = ["freeze", "masked", "set_to_zero"]


def masked(inner: GradientTransformation, mask: Mask) -> GradientTransformation:
    """Apply the transformation `inner` where the mask is True; pass other gradients on unchanged.

    For transformations such as `trace` or `add_decayed_weights`. With a whole optimizer as `inner`, the
    unchanged gradients of the other leaves would be added to the parameters: use `freeze` to keep
    parameters constant, and `partition` for several optimizers.

    Args:
        inner: the transformation. It gets the tree with `Masked()` in place of each leaf whose mask is
            False.
        mask: a pattern of names, a tree of bools, or a function from parameters to one.

    Returns:
        A transformation with the state of `inner` for those leaves.

    Raises:
        ValueError: the mask's structure is not that of the parameters, or the pattern is in no name.

    Example:
        >>> from ftrain import optim
        >>> link = masked(optim.scale(-0.1), "weight$")
        >>> grads = {"weight": torch.tensor([1.0]), "bias": torch.tensor([1.0])}
        >>> link.update(grads, link.init(grads))[0]
        {'weight': tensor([-0.1000]), 'bias': tensor([1.])}
    """
    _checks.optimizer("masked", inner)
    return _on_part(inner, lambda params: mask_leaves(mask, params), lambda grad: grad)


def freeze(inner: GradientTransformation, mask: Mask) -> GradientTransformation:
    """Keep the masked parameters bit for bit; `inner` updates the others, and has state for them only.

    Args:
        inner: the optimizer of all other parameters; clipping inside it sees their gradients only.
        mask: the parameters to keep: a pattern of names, a tree of bools, or a function from parameters
            to one.

    Returns:
        A transformation with the state of `inner` for the parameters that move.

    Raises:
        ValueError: the mask's structure is not that of the parameters, or the pattern is in no name, or
            it is None, which would keep them all.

    Example:
        >>> from ftrain import optim
        >>> optimizer = freeze(optim.sgd(0.1), "^backbone")
        >>> params = {"backbone.w": torch.tensor([1.0]), "head.w": torch.tensor([1.0])}
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> optim.apply_updates(params, updates)
        {'backbone.w': tensor([1.]), 'head.w': tensor([0.9000])}
    """
    _checks.optimizer("freeze", inner)
    if mask is None:
        raise ValueError(
            "freeze: expected a mask of the parameters to freeze, got None, which would freeze every "
            "parameter. Write optim.set_to_zero() for an optimizer that changes none."
        )
    return _on_part(
        inner, lambda params: [not frozen for frozen in mask_leaves(mask, params)], unchanged
    )


def set_to_zero() -> GradientTransformation:
    """Return an optimizer that keeps every parameter unchanged, for frozen groups of `partition`.

    The updates are `-0.0`, which added to any number gives that number, to the bit.

    Example:
        >>> set_to_zero().update({"w": torch.tensor([3.0])}, ())[0]
        {'w': tensor([-0.])}
    """

    def init(params: PyTree) -> PyTree:
        return ()

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        leaves, treedef = gradients(grads)
        return tree.unflatten(treedef, [unchanged(g) for g in leaves]), state

    return GradientTransformation(init, update)


def _on_part(
    inner: GradientTransformation,
    kept: Callable[[PyTree], list[bool]],
    other: Callable[[torch.Tensor], torch.Tensor],
) -> GradientTransformation:
    def init(params: PyTree) -> PyTree:
        return inner.init(part(params, kept(params)))

    def update(
        grads: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        keep = kept(grads if params is None else params)
        if params is not None:
            matching_leaves(("params", params), ("grads", grads))
        given = None if params is None else part(params, keep)
        updates, state = inner.update(
            part(grads, keep), state, given, **narrowed(extra, params, keep)
        )
        mine = iter(tree.leaves(updates))
        flat, treedef = gradients(grads)
        merged = [next(mine) if k else other(g) for g, k in zip(flat, keep, strict=True)]
        return tree.unflatten(treedef, merged), state

    return GradientTransformation(init, update)
