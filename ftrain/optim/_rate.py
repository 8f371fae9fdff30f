"""Learning rate of an optimizer (a number or a schedule), and its value after n updates.

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
    """Raise unless the learning rate is a finite number >= 0, a 0-d tensor or a schedule."""
    if callable(learning_rate) and not isinstance(learning_rate, torch.Tensor):
        return
    _checks.non_negative(name, learning_rate)


def zero_count(device: torch.device) -> torch.Tensor:
    """Return the update count of the initial state: 0, as an int64 0-d tensor."""
    return torch.zeros((), dtype=torch.int64, device=device)


def rate_at(learning_rate: LearningRate, count: torch.Tensor) -> torch.Tensor:
    """Return the learning rate after `count` updates, float64 and 0-d, on the device of `count`."""
    if not callable(learning_rate) or isinstance(learning_rate, torch.Tensor):
        return double(learning_rate, count.device)
    rate = learning_rate(count)
    if isinstance(rate, torch.Tensor) and rate.ndim:
        raise ValueError(
            f"schedule: expected a function that returns a 0-d tensor, got shape {tuple(rate.shape)}. "
            "Compute the rate from the count alone, which is an int64 0-d tensor."
        )
    if not isinstance(rate, (torch.Tensor, float, int)):
        raise TypeError(
            f"schedule: expected a function that returns a 0-d tensor, got one that returns "
            f"{type(rate).__name__} {rate!r}. Return a tensor, or a Python number."
        )
    return double(rate, count.device)


def double(value: Hyperparameter, device: torch.device) -> torch.Tensor:
    """Return a number or 0-d tensor as a float64 0-d tensor on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device=device, dtype=torch.float64)
    return torch.full((), value, dtype=torch.float64, device=device)
