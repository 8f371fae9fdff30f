"""Error for a step on several ranks that is differentiated or vmapped: its results would be wrong."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._kept_graph import keeps_graph
from ftrain.core._torch_levels import is_transformed

__all__ = ["refuse_derivatives"]


def refuse_derivatives(totals: Any) -> None:
    """Raise if `totals` have an autograd graph, or a `torch.func` transform is active.

    The derivative of a sum over ranks is itself a sum over ranks, but autograd would compute it on one
    rank only.

    Raises:
        NotImplementedError: the totals have derivatives, or a transform is active.
    """
    has_graph = any(isinstance(x, torch.Tensor) and x.requires_grad for x in tree.leaves(totals))
    if has_graph or keeps_graph() or is_transformed():
        raise NotImplementedError(
            "data_parallel: expected a step that is called without transforms, got one that is "
            "differentiated, or mapped by torch.vmap; torch supports neither for sums over ranks. Use "
            "an optimizer without second derivatives, or differentiate and map in one process."
        )
