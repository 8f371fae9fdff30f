"""Work that is done at some updates only: a branch that a compiled step takes or leaves.

`torch.where` would do the work at every update and throw most of it away: SOAP on a GPT of 0.8 M
parameters, with new bases every tenth update, takes 175 ms an update so and 40 with a branch (compiled,
one core). The branch is an operator of the graph (that of `torch.cond`), traced by ftrain as
`ftrain.scan` traces its body, and Python's own `if` in eager mode. Under `torch.vmap` each row may
decide for itself, so there both sides are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ftrain.core import _torch, tree
from ftrain.core._pull_back import in_transform
from ftrain.core._traced_branch import traced_branch
from ftrain.core.compile._trace import is_tracing
from ftrain.core.optimizer import like
from ftrain.core.random.keyed import scoped

__all__ = ["changed_if"]

T = TypeVar("T")


def changed_if(predicate: torch.Tensor, change: Callable[[T], T], value: T) -> T:
    """`change(value)` where the predicate holds, `value` where it does not.

    Eager and compiled code on an accelerator read the predicate on the host: one wait for the device
    at each call. On a CPU there is nothing to wait for.

    Args:
        predicate: bool, 0-d.
        change: a pure function that returns a tree like its argument.
        value: a tree of tensors. Without the change its leaves are returned as copies.

    >>> changed_if(torch.tensor(3) > 2, lambda x: 2 * x, torch.tensor(5.0))
    tensor(10.)
    """
    old, treedef = tree.flatten(value)
    if not old:
        return value
    # Draws of their own: those outside must not depend on which branch is taken.
    with scoped("cond") as branch:

        def flat(*leaves: torch.Tensor) -> list[torch.Tensor]:
            with branch(0):
                new = tree.leaves(change(tree.unflatten(treedef, leaves)))
            return [
                leaf.clone() if x is leaf else like(x, leaf)
                for x, leaf in zip(new, leaves, strict=True)
            ]

        def keep(*leaves: torch.Tensor) -> list[torch.Tensor]:
            return [x.clone() for x in leaves]

        if in_transform():
            new = [torch.where(predicate, x, leaf) for x, leaf in zip(flat(*old), old, strict=True)]
            new = [like(x, leaf) for x, leaf in zip(new, old, strict=True)]
        elif is_tracing() or isinstance(predicate, _torch.FakeTensor):
            new = traced_branch(predicate, [flat, keep], old)
        else:
            new = flat(*old) if bool(predicate) else keep(*old)
    return tree.unflatten(treedef, new)  # type: ignore[no-any-return]  # a tree like `value`
