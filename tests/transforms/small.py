"""A small model with dropout, losses and batches, for the tests of steps made out of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core import tree

OPTIMIZER = optim.chain(optim.clip_by_global_norm(1.0), optim.adam(0.05))
BOUND = ftrain.bind(lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)))


def squares(model: Any, batch: Any) -> torch.Tensor:
    return (model(batch["x"]) - batch["y"]).square().mean()


def distances(model: Any, batch: Any) -> torch.Tensor:
    return (model(batch["x"]) + batch["y"]).abs().mean()


def steps_of(loss_fn: Callable[..., Any] = squares, **options: Any) -> ftrain.Steps:
    return ftrain.make_steps(BOUND, loss_fn, OPTIMIZER, **options)


def batch(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(4, 3, generator=g), "y": torch.randn(4, 1, generator=g)}


def spoiled(batch: Any) -> Any:
    return tree.map(lambda x: torch.full_like(x, torch.nan), batch)
