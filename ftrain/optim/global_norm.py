"""The Euclidean norm of a whole tree."""

from __future__ import annotations

import torch

from ftrain.core import tree
from ftrain.optim.protocol import PyTree

__all__ = ["global_norm"]


def global_norm(updates: PyTree) -> torch.Tensor:
    """The Euclidean norm of all leaves together, as if they were one vector.

    `sqrt(sum_i ||x_i||^2)`, by the expression of `torch.nn.utils.get_total_norm`, bit for bit: a
    norm for each leaf, and the norm of those. Written in one place, so that a step which reports
    the norm and a clip which uses it cost one evaluation in a compiled graph.

    Args:
        updates: a tree of floating tensors.

    Returns:
        A 0-d tensor: float64 if any leaf is float64, else float32 (also for bfloat16 leaves, whose
        squares are summed in float32). Zero for a tree without leaves.

    >>> global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[0.0], [4.0]])})
    tensor(5.)
    """
    leaves = tree.leaves(updates)
    if not leaves:
        return torch.zeros(())
    wide = any(leaf.dtype == torch.float64 for leaf in leaves)
    dtype = torch.float64 if wide else torch.float32
    device = leaves[0].device
    norms = [torch.linalg.vector_norm(leaf, dtype=dtype).to(device) for leaf in leaves]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
