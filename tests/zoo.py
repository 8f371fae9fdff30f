"""The models that every law is held against, small enough to run by the hundred."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import ftrain


class Case(NamedTuple):
    model: Callable[[], nn.Module]
    loss_fn: Callable[[Any, Any], Any]
    batch: Callable[[int, int], Any]  # (seed, rows) -> batch
    randomless: Callable[[], nn.Module]  # the same without dropout


class MLP(nn.Module):
    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 8),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(8, 8),
            nn.GELU(),
            nn.Linear(8, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(4 * 9, 3),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(y.transpose(1, 2).reshape(b, t, c)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    """Embedding and output weights are tied."""

    def __init__(
        self,
        vocabulary: int = 11,
        width: int = 8,
        context: int = 5,
        dropout: float = 0.1,
        blocks: int = 2,
    ):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, 2, dropout) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


class LSTM(nn.Module):
    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, num_layers=2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def classification_loss(model: Any, batch: Any) -> Any:
    logits = model(batch["x"])
    loss = F.cross_entropy(logits.float(), batch["y"])
    return loss, {"accuracy": (logits.argmax(-1) == batch["y"]).float().mean()}


def token_loss(model: Any, batch: Any) -> Any:
    """Ragged: only unmasked tokens count, so micro-batches weigh differently."""
    logits = model(batch["x"])
    losses = F.cross_entropy(logits.float().flatten(0, 1), batch["y"].flatten(), reduction="none")
    mask = batch["mask"].flatten()
    return ftrain.Mean((losses * mask).sum(), mask.sum())


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _classes(*shape: int) -> Callable[[int, int], Any]:
    def batch(seed: int, rows: int = 8) -> Any:
        g = _generator(seed)
        return {
            "x": torch.randn(rows, *shape, generator=g),
            "y": torch.randint(0, 3, (rows,), generator=g),
        }

    return batch


def _tokens(seed: int, rows: int = 8) -> Any:
    g = _generator(seed)
    mask = (torch.rand(rows, 5, generator=g) < 0.6).float()
    mask[0] = 0.0  # a row without any token
    mask[-1, 0] = 1.0
    return {
        "x": torch.randint(0, 11, (rows, 5), generator=g),
        "y": torch.randint(0, 11, (rows, 5), generator=g),
        "mask": mask,
    }


@functools.cache
def lstm_runs_under_autocast(dtype: torch.dtype) -> bool:
    """Return True if torch's LSTM runs; without AVX-512 oneDNN has none in bfloat16 and float16."""
    try:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            nn.LSTM(1, 1)(torch.zeros(1, 1, 1))
    except RuntimeError:
        return False
    return True


ZOO: dict[str, Case] = {
    "mlp": Case(MLP, classification_loss, _classes(6), lambda: MLP(0.0)),
    "convnet": Case(ConvNet, classification_loss, _classes(1, 6, 6), ConvNet),
    "gpt": Case(GPT, token_loss, _tokens, lambda: GPT(dropout=0.0)),
    "lstm": Case(LSTM, classification_loss, _classes(7, 4), lambda: LSTM(0.0)),
}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")
