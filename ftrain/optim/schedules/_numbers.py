"""Numbers of schedules: float64, on the device of the count."""

from __future__ import annotations

import torch

from ftrain.optim._rate import double
from ftrain.optim.protocol import Hyperparameter

__all__ = ["progress", "wide"]


def wide(value: Hyperparameter, count: torch.Tensor) -> Hyperparameter:
    """Return a number unchanged; a 0-d tensor in float64, on the device of the count."""
    return double(value, count.device) if isinstance(value, torch.Tensor) else value


def progress(count: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the fraction of `steps` done: from 0 at count 0 to 1 at count `steps`, then 1."""
    return count.to(torch.float64).clamp(0, steps) / steps
