"""The Euclidean norm of a whole tree."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.core import tree

__all__ = ["global_norm"]


def global_norm(values: Any) -> torch.Tensor:
    r"""The norm of all leaves taken as one vector, $\sqrt{\sum_i \lVert x_i \rVert^2}$.

    >>> global_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    tensor(5.)
    """
    norms = [
        torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for x in tree.leaves(values)
    ]
    return torch.linalg.vector_norm(torch.stack(norms))
