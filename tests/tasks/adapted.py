"""Models, batches and steps for the tests of low-rank adapters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ftrain
from ftrain import random

KEY = random.key(0)
# Sums of a few dozen products in float64, in another order: measured 5e-16.
ROUNDING = 1e-13


class Tied(nn.Module):
    """Bigram model of integer tokens whose output weights are those of its embedding."""

    def __init__(self, words: int = 7, width: int = 5) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.mix = nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(torch.tanh(self.mix(self.words(tokens)))))
        return out


class Parts(nn.Module):
    """One module of each kind that can be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 5)
        self.image = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(5)

    def forward(self, tokens: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        words = self.words(tokens)
        mixed = words + self.attention(words, words, words, need_weights=False)[0]
        return self.norm(self.mix(mixed)), self.image(image)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))


def loss_fn(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    error: Tensor = model(batch[0]) - batch[1]
    return error.square().mean()


def next_token(model: Any, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def batches(count: int = 3, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(rows, 4), torch.randn(rows, 3)) for _ in range(count)]


def moved(params: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return trained adapters: none of their matrices is zero."""
    torch.manual_seed(seed)
    return {name: p + 0.3 * torch.randn_like(p) for name, p in params.items()}


def trained(steps: ftrain.Steps, seed: int = 0) -> ftrain.TrainState:
    state = steps.init_state(seed)
    for batch in batches():
        state, _ = steps.train_step(state, batch)
    return state


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())
