"""Outputs of loop and branch bodies, copied unless nothing else refers to their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core.compile._ownership import held_elsewhere

__all__ = ["copied"]


def copied(make: Callable[[], Any]) -> Any:
    """Call `make`; return the resulting tree, with copies of tensors that something else may refer to.

    A body may return a tensor from anywhere: an argument, a container, a module, a global. One that it
    has made is referred to by its output alone, and is not copied: that would double the time of a
    large elementwise operation.

    Args:
        make: the call that returns the tree. Given the tree itself, the caller's frame would refer to it
            too wherever Dynamo evaluates frames.
    """
    leaves, treedef = tree.flatten(make())
    places = [*range(len(leaves))]
    if not _torch.inside_functorch() and all(type(leaf) is torch.Tensor for leaf in leaves):
        held = set(held_elsewhere(leaves, len(leaves)))
        places = [
            place
            for place, leaf in enumerate(leaves)
            # Memory that torch has not allocated, such as a NumPy array's, cannot be resized.
            if place in held or not leaf.untyped_storage().resizable()
        ]
    for place in places:
        leaves[place] = leaves[place].clone()
    return tree.unflatten(treedef, leaves)
