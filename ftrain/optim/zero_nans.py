"""Replacement of NaNs in gradients by zeros, recorded in the optimizer state."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ftrain.core import tree
from ftrain.optim._checked import checked
from ftrain.optim._leaves import gradients, parameters
from ftrain.optim.protocol import GradientTransformation, PyTree

__all__ = ["ZeroNansState", "zero_nans"]


class ZeroNansState(NamedTuple):
    """State of `zero_nans`.

    Attributes:
        found_nan: a tree like the parameters of 0-d bools: True if the leaf had a NaN at the last
            update.
    """

    found_nan: PyTree


def zero_nans() -> GradientTransformation:
    """Replace each NaN by 0 and record in the state which leaves had one; infinities stay.

    Use it in steps with `nonfinite="ignore"`: other training steps skip or raise before a NaN reaches
    the optimizer.

    Returns:
        A transformation with a `ZeroNansState`.

    Example:
        >>> grads = {"a": torch.tensor([float("nan"), 1.0]), "b": torch.tensor(2.0)}
        >>> clean = zero_nans()
        >>> clean.update(grads, clean.init(grads))
        ({'a': tensor([0., 1.]), 'b': tensor(2.)},
         ZeroNansState(found_nan={'a': tensor(True), 'b': tensor(False)}))
    """

    def init(params: PyTree) -> ZeroNansState:
        leaves, treedef = parameters(params)
        none = [torch.zeros((), dtype=torch.bool, device=p.device) for p in leaves]
        return ZeroNansState(tree.unflatten(treedef, none))

    def update(
        grads: PyTree, state: ZeroNansState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ZeroNansState]:
        leaves, treedef = gradients(grads)
        clean = [torch.where(g.isnan(), 0.0, g) for g in leaves]
        found = [g.isnan().any() for g in leaves]
        return tree.unflatten(treedef, clean), ZeroNansState(tree.unflatten(treedef, found))

    return checked("zero_nans", ZeroNansState, init, update)
