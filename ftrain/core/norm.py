"""The Euclidean norm of a whole tree."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree

__all__ = ["global_norm"]


def global_norm(values: Any) -> torch.Tensor:
    r"""The norm of all leaves taken as one vector, $\sqrt{\sum_i \lVert x_i \rVert^2}$.

    The expression of `torch.nn.utils.get_total_norm`, bit for bit: a norm for each leaf, and the norm of
    those. Written in one place, so that a step which reports the norm and a clip which uses it cost one
    evaluation in a compiled graph.

    Args:
        values: a tree of floating tensors.

    Returns:
        A 0-d tensor: float64 if any leaf is float64, else float32 (bfloat16 squares are summed in
        float32 too). Zero for a tree without leaves.

    >>> global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[0.0], [4.0]])})
    tensor(5.)
    """
    leaves = tree.leaves(values)
    if not leaves:
        return torch.zeros(())
    wide = any(leaf.dtype == torch.float64 for leaf in leaves)
    dtype = torch.float64 if wide else torch.float32
    norms = [torch.linalg.vector_norm(x, dtype=dtype).to(leaves[0].device) for x in leaves]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
