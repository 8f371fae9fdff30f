"""Parts of gallery entries: small networks, batches, and a plain update of dicts of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
Params = dict[str, Tensor]

FEATURES, HIDDEN, CLASSES = 4, 8, 3


def seeded(build: Callable[[], T], seed: int = 0) -> T:
    """Call `build` with a seeded generator, and leave the global one as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def mlp() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))
    )


def batch_norm_mlp() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(FEATURES, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, CLASSES)
        )
    )


def params_of(module: nn.Module) -> Params:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def buffers_of(module: nn.Module) -> Params:
    return {name: b.detach().clone() for name, b in module.named_buffers()}


def zeros_like(params: Params) -> Params:
    return {name: torch.zeros_like(p) for name, p in params.items()}


def descend(params: Params, grads: Params, learning_rate: Any = 0.1) -> Params:
    return {name: p - learning_rate * grads[name] for name, p in params.items()}


def batches(count: int = 3, rows: int = 6) -> list[dict[str, Tensor]]:
    """Return classification batches."""
    return seeded(
        lambda: [
            {"x": torch.randn(rows, FEATURES), "y": torch.randint(0, CLASSES, (rows,))}
            for _ in range(count)
        ]
    )


def ragged(count: int = 3, rows: int = 8, length: int = 5) -> list[dict[str, Tensor]]:
    """Return token batches whose rows have from 0 to `length` tokens."""

    def build() -> list[dict[str, Tensor]]:
        lengths = torch.arange(rows) % (length + 1)
        return [
            {
                "x": torch.randn(rows, length, FEATURES),
                "y": torch.randint(0, CLASSES, (rows, length)),
                "mask": (torch.arange(length) < lengths[:, None]).float(),
            }
            for _ in range(count)
        ]

    return seeded(build)
