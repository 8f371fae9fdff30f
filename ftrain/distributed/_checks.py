"""Checks that refuse transforms under which steps over ranks would return wrong results."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree
from ftrain.core._kept_graph import keeps_graph
from ftrain.core._torch_levels import is_transformed

__all__ = ["refuse_derivatives"]


def refuse_derivatives(totals: Any) -> None:
    """Raise if sums over ranks would be differentiated, or mapped by a transform of torch.func.

    The derivative of a sum over ranks is itself a sum over ranks, but autograd would compute it on one
    rank only.

    Raises:
        NotImplementedError: the totals have derivatives, or a transform is active.
    """
    has_graph = any(isinstance(x, torch.Tensor) and x.requires_grad for x in tree.leaves(totals))
    if has_graph or keeps_graph() or is_transformed():
        raise NotImplementedError(
            "data_parallel: expected a step whose sums over ranks are only evaluated, got one that is "
            "differentiated, or mapped by torch.vmap. The derivative of a sum over ranks is a sum over "
            "ranks too, which torch does not compute. Use an optimizer without second derivatives, or "
            "differentiate and map in one process."
        )
