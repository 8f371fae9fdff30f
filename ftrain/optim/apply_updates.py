"""What an optimizer's updates are for: the next parameters."""

from __future__ import annotations

from ftrain.core import tree
from ftrain.optim._leaves import agreeing, like
from ftrain.optim.protocol import PyTree

__all__ = ["apply_updates"]


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """The parameters after one update: `params + updates`, in their own dtypes and strides.

    The sum is taken in the wider of the two dtypes and rounded once, so float32 updates of bfloat16
    parameters lose nothing before they are added.

    Args:
        params: a tree of floating tensors.
        updates: a tree of the same structure and shapes.

    Returns:
        New tensors; `params` keep their bytes.

    Raises:
        ValueError: structure or shapes differ; the message names the first path.
        TypeError: an update is not a floating tensor.

    >>> import torch
    >>> apply_updates({"w": torch.ones(2)}, {"w": torch.tensor([0.5, -0.5])})
    {'w': tensor([1.5000, 0.5000])}
    """
    (old, deltas), treedef = agreeing(("params", params), ("updates", updates), strict_dtype=False)
    return tree.unflatten(treedef, [like(p + u, p) for p, u in zip(old, deltas, strict=True)])
