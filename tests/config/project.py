"""A user's own model, data and loss for configurations."""

from __future__ import annotations

import pathlib
from typing import Literal

import torch
from torch import nn

from ftrain.config import register


class Net(nn.Module):
    def __init__(
        self,
        width: int = 4,
        dropout: float = 0.0,
        shape: tuple[int, ...] = (),
        kind: Literal["a", "b"] = "a",
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Dropout(dropout), nn.Linear(width, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return found


def data(n: int = 24, path: pathlib.Path | None = None) -> dict[str, torch.Tensor]:
    if path is not None and not path.exists():
        raise FileNotFoundError(f"file not found: {path}")
    x = torch.linspace(-1, 1, 3 * n).view(n, 3)
    return {"x": x, "y": (x.sum(1) > 0).long()}


def pair(n: int = 24) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return data(n), data(n // 2)


def loss_fn(model: nn.Module, batch: dict[str, torch.Tensor], scale: float = 1.0) -> torch.Tensor:
    return scale * nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def broken() -> nn.Module:
    raise RuntimeError("the file is not finished")


def any_of(**options: object) -> nn.Module:
    return Net()


@register("model", "test-net")
def registered(width: int = 4) -> nn.Module:
    return Net(width)


not_callable = 3
