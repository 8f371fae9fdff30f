"""Trust ratio: the norm of a parameter over the norm of its update direction."""

from __future__ import annotations

import torch

from ftrain.optim.protocol import Hyperparameter

__all__ = ["trust_ratio"]


def trust_ratio(
    param: torch.Tensor,
    direction: torch.Tensor,
    coefficient: Hyperparameter = 1.0,
    eps: Hyperparameter = 0.0,
) -> torch.Tensor:
    """Return `coefficient ||p|| / (||d|| + eps)` for one tensor, or 1 if either norm is 0."""
    length, step = torch.linalg.vector_norm(param), torch.linalg.vector_norm(direction)
    stuck = (length == 0) | (step == 0)
    return torch.where(stuck, 1.0, coefficient * length / torch.where(stuck, 1.0, step + eps))
