"""Arithmetic of schedules: conversion to float64 on the count's device, and fraction done."""

from __future__ import annotations

import torch

from ftrain.optim._rate import double
from ftrain.optim.protocol import Hyperparameter

__all__ = ["progress", "wide"]


def wide(value: Hyperparameter, count: torch.Tensor) -> Hyperparameter:
    """Return a number unchanged, but a 0-d tensor as float64 on the device of the update count."""
    return double(value, count.device) if isinstance(value, torch.Tensor) else value


def progress(count: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the fraction of `steps` done after `count` updates, from 0 to 1; then it stays 1."""
    return count.to(torch.float64).clamp(0, steps) / steps
