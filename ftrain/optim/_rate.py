"""The learning rate of an algorithm: a number or a schedule, and its value at a count.

Values derived from a count are float64 0-d tensors: `torch.optim` computes them in Python floats,
which are float64 too; in float32 `1 - 0.999**t` would be off by 5e-5 at t = 1.
"""

from __future__ import annotations

import torch

from ftrain.optim import _checks
from ftrain.optim.protocol import Hyperparameter, Schedule

__all__ = ["LearningRate", "check_learning_rate", "double", "rate_at", "zero_count"]

LearningRate = Hyperparameter | Schedule


def check_learning_rate(learning_rate: LearningRate, name: str = "learning_rate") -> None:
    """Raise unless this is a finite number >= 0, a 0-d tensor or a schedule."""
    if callable(learning_rate) and not isinstance(learning_rate, torch.Tensor):
        return
    _checks.non_negative(name, learning_rate)


def zero_count(device: torch.device) -> torch.Tensor:
    """Return the number of updates before the first: int64, 0-d."""
    return torch.zeros((), dtype=torch.int64, device=device)


def rate_at(learning_rate: LearningRate, count: torch.Tensor) -> torch.Tensor:
    """Return the rate of the update after `count` others: float64, 0-d, on its device."""
    if not callable(learning_rate) or isinstance(learning_rate, torch.Tensor):
        return double(learning_rate, count.device)
    rate = learning_rate(count)
    if isinstance(rate, torch.Tensor) and rate.ndim:
        raise ValueError(
            f"the schedule returned a tensor of shape {tuple(rate.shape)}; a rate is 0-d. "
            "It is given the count as an int64 0-d tensor: compute from that alone."
        )
    if not isinstance(rate, (torch.Tensor, float, int)):
        raise TypeError(f"the schedule returned {type(rate).__name__} {rate!r}, not a 0-d tensor.")
    return double(rate, count.device)


def double(value: Hyperparameter, device: torch.device) -> torch.Tensor:
    """Return a number or 0-d tensor as a float64 0-d tensor on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device=device, dtype=torch.float64)
    return torch.full((), value, dtype=torch.float64, device=device)
