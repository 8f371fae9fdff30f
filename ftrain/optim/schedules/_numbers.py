"""Arithmetic of schedules: conversion of numbers to float64, and the fraction of steps done."""

from __future__ import annotations

import torch

from ftrain.optim._rate import double
from ftrain.optim.protocol import Hyperparameter

__all__ = ["progress", "wide"]


def wide(value: Hyperparameter, count: torch.Tensor) -> Hyperparameter:
    """Return a 0-d tensor as float64 on the device of the update count; return a number unchanged."""
    return double(value, count.device) if isinstance(value, torch.Tensor) else value


def progress(count: torch.Tensor, steps: int) -> torch.Tensor:
    """Return `count / steps`, clamped to [0, 1]: the fraction of `steps` done after `count` updates."""
    return count.to(torch.float64).clamp(0, steps) / steps
