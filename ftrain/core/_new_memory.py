"""Copies of those outputs of a user's function that may share memory with other objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core.compile._ownership import held_elsewhere

__all__ = ["copied"]


def copied(make: Callable[[], Any]) -> Any:
    """Return the result of `make()`, with a copy of each tensor to which another object may refer.

    A body may return a tensor from anywhere: an argument, a container, a module, a global variable. A
    tensor that the body has made is referred to by its output only, and is not copied, because a copy
    would double the time of a large elementwise operation.

    Args:
        make: a function that returns the tree. The tree itself is not an argument, because the caller's
            frame would then refer to it too if Dynamo evaluates frames.
    """
    leaves, treedef = tree.flatten(make())
    kept = set(unshared(leaves))
    for place in range(len(leaves)):
        if place not in kept and isinstance(leaves[place], torch.Tensor):
            leaves[place] = leaves[place].clone()
    return tree.unflatten(treedef, leaves)


def unshared(leaves: list[torch.Tensor], containers: int = 0) -> list[int]:
    """Return the positions of plain tensors to whose memory no other object refers.

    Args:
        leaves: the tensors, in a list to which only the caller refers.
        containers: the number of other containers that refer to each of them.
    """
    if _torch.inside_functorch() or any(type(leaf) is not torch.Tensor for leaf in leaves):
        return []
    held = set(held_elsewhere(leaves, len(leaves), containers))
    return [
        place for place, leaf in enumerate(leaves) if place not in held and _fills_storage(leaf)
    ]


def _fills_storage(tensor: torch.Tensor) -> bool:
    """Return True if torch allocated a tensor's storage and the tensor uses all of it."""
    storage = tensor.untyped_storage()
    # Memory that torch has not allocated, such as a NumPy array's, cannot be resized.
    return storage.resizable() and storage.nbytes() == tensor.nbytes
