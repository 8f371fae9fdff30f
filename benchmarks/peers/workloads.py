"""Workloads of the comparison: model, loss, batches and settings that all contenders share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import jax_step
from benchmarks.contenders import (
    CLIP,
    DECAY,
    GPT,
    MLP,
    RATE,
    Batch,
    Precision,
    Sizes,
    Task,
    square_loss,
    token_loss,
)
from ftrain import optim
from ftrain.tasks.models import LeNet5, ResNet

__all__ = ["GPTS", "TINY", "TINY_SIZES", "WORKLOADS", "Workload", "gpt", "mlp"]

BATCHES = 4  # the number of different batches, which are used in turn


@dataclasses.dataclass(frozen=True)
class Workload:
    """Model, loss, data and settings of a training step.

    Attributes:
        name: short name, as on the command line.
        title: the sizes, in words.
        model: builds the model.
        loss_fn: `loss_fn(model, batch)`, the mean over the batch.
        rows: `rows(n, generator)` returns a random batch of n rows.
        batch: the rows of a micro-batch.
        scan: the training steps in one call of the contender that scans.
        clip: True if gradients are clipped by their norm.
        mask: the parameters to which weight decay applies.
        jax_loss: the loss in JAX; `None`: there is none.
        accumulate: the micro-batches of a step; a step has `accumulate * batch` rows.
        precision: the precision of the loss.
        rate: the learning rate.
        decay: the weight decay.
        max_norm: the norm to which gradients are clipped.
    """

    name: str
    title: str
    model: Callable[[], nn.Module]
    loss_fn: Callable[[Any, Batch], torch.Tensor]
    rows: Callable[[int, torch.Generator], Batch]
    batch: int
    scan: int = 32
    clip: bool = True
    mask: Any = optim.everything
    jax_loss: jax_step.Loss | None = None
    accumulate: int = 1
    precision: Precision = "32-true"
    rate: float = RATE
    decay: float = DECAY
    max_norm: float = CLIP

    @property
    def key(self) -> str:
        """Name of the measurement: `gpt-0.8m, accumulate 4, bf16-mixed`."""
        clip = "" if self.clip else ", not clipped"
        return f"{self.name}, accumulate {self.accumulate}, {self.precision}{clip}"

    @property
    def tolerance(self) -> float:
        """Largest relative difference of a loss of the first three steps from the eager loop's.

        Measured over the tiny workloads: at most 1.4e-5 in float32 (an LSTM under `torch.func`, which
        runs other kernels), and 2e-3 in bfloat16 (Lightning Fabric, which rounds inputs and targets
        too). The tiny MLP in float32 is off by 4e-4 without clipping, by 3e-3 without decay.
        """
        return 1e-4 if self.precision == "32-true" else 5e-3

    def task(self) -> Task:
        """Return model, loss and batches as a `Task`, which the other benchmarks use."""
        generator = torch.Generator().manual_seed(0)
        n = self.batch * self.accumulate
        batches = [self.rows(n, generator) for _ in range(BATCHES)]
        return Task(
            self.model,
            self.loss_fn,
            batches,
            self.clip,
            self.mask,
            self.rate,
            self.decay,
            self.max_norm,
        )


def mlp(layers: int, width: int = 16, batch: int = 8, name: str = "", **options: Any) -> Workload:
    """Return the workload of a stack of square linear layers with ReLU between them."""

    def rows(n: int, g: torch.Generator) -> Batch:
        x, y = torch.randn(2, n, width, generator=g)
        return {"x": x.contiguous(), "y": y.contiguous()}

    return Workload(
        name or f"mlp-{layers}",
        f"MLP of {layers} layers of width {width}, batch {batch}",
        lambda: MLP(width, layers),
        square_loss,
        rows,
        batch,
        jax_loss=jax_step.mlp_loss,
        **options,
    )


def gpt(name: str, sizes: Sizes, scan: int) -> Workload:
    """Return the workload of a GPT, with weight decay on matrices only."""

    def rows(n: int, g: torch.Generator) -> Batch:
        x, y = torch.randint(0, sizes.vocabulary, (2, n, sizes.context), generator=g)
        return {"x": x.contiguous(), "y": y.contiguous()}

    return Workload(
        name,
        f"GPT of {sizes.layers} blocks of width {sizes.width}, batch {sizes.batch} x {sizes.context}",
        lambda: GPT(sizes),
        token_loss,
        rows,
        sizes.batch,
        scan,
        mask=optim.matrices,
        jax_loss=jax_step.gpt_loss(sizes.heads),
    )


class LSTM(nn.Module):
    """Language model of one recurrent layer."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.layer = nn.LSTM(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.layer(self.tokens(x))[0])
        return logits


def lstm(vocabulary: int, width: int, hidden: int, context: int, batch: int) -> Workload:
    def rows(n: int, g: torch.Generator) -> Batch:
        x, y = torch.randint(0, vocabulary, (2, n, context), generator=g)
        return {"x": x.contiguous(), "y": y.contiguous()}

    title = f"LSTM of width {hidden}, batch {batch} x {context}"
    return Workload(
        "lstm", title, lambda: LSTM(vocabulary, width, hidden), token_loss, rows, batch, 8
    )


def images(
    name: str, title: str, model: Callable[[], nn.Module], batch: int, *shape: int
) -> Workload:
    """Return the workload of a classifier of random images into ten classes."""

    def rows(n: int, g: torch.Generator) -> Batch:
        x = torch.randn(n, *shape, generator=g)
        return {"x": x, "y": torch.randint(0, 10, (n,), generator=g)}

    def loss_fn(model: Any, batch: Batch) -> torch.Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"])

    return Workload(name, f"{title}, batch {batch}", model, loss_fn, rows, batch, 8)


GPTS = {
    "gpt-0.8m": (Sizes(), 8),  # nanoGPT's sizes for a CPU
    "gpt-7m": (Sizes(layers=4, heads=6, width=384), 2),
    "gpt-25m": (Sizes(layers=8, heads=8, width=512), 2),
}
WORKLOADS: dict[str, Workload] = {
    "mlp-3": mlp(3),
    "mlp-50": mlp(50),
    "lenet-5": images("lenet-5", "LeNet-5", LeNet5, 32, 1, 32, 32),
    "resnet": images("resnet", "ResNet of 8 layers with BatchNorm", ResNet, 32, 3, 32, 32),
    **{name: gpt(name, *options) for name, options in GPTS.items()},
    "lstm": lstm(65, 64, 128, 64, 16),
}

TINY_SIZES = Sizes(1, 2, width=16, context=8, batch=4, vocabulary=11)
_TINY = {
    "mlp-3": mlp(3, 8, 4),
    "mlp-50": mlp(5, 8, 4, "mlp-50"),
    "lenet-5": images("lenet-5", "LeNet-5", LeNet5, 2, 1, 32, 32),
    "resnet": images("resnet", "ResNet", lambda: ResNet(widths=(4, 8)), 4, 3, 8, 8),
    **{name: gpt(name, TINY_SIZES, 4) for name in GPTS},
    "lstm": lstm(11, 4, 8, 5, 4),
}
# With this rate, decay and norm, a step that leaves one of them out has other losses at once.
TINY: dict[str, Workload] = {
    name: dataclasses.replace(work, scan=4, rate=1e-2, decay=2.0, max_norm=0.05)
    for name, work in _TINY.items()
}
