"""Students, teachers and batches for the tests of distillation."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, tasks


class Net(nn.Module):
    """A classifier with a body, a normalization, and a head whose width is chosen."""

    def __init__(self, width: int = 8, norm: Any = nn.BatchNorm1d, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), norm(width), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(width, 3)
        self.predictor = nn.Linear(3, 3)  # of BYOL, not called in forward
        self.projection = nn.Linear(width, 16)  # to the features of a teacher, likewise

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def batches(count: int, n: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    draws = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        x = torch.randn(n, 4, generator=draws, dtype=dtype)
        y = torch.randint(0, 3, (n,), generator=draws)
        y[0] = -100
        other = torch.randn(n, 4, generator=draws, dtype=dtype)
        made.append({"x": x, "y": y, "first": x, "second": other})
    return made


def large(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a teacher in train mode, with dropout, and statistics that are not those of a start."""
    torch.manual_seed(7)
    net = Net(16, dropout=0.5).to(dtype)
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(32, 4, dtype=dtype) * 2 + 1)
    return net


def taught(loss: Any, *, module: nn.Module, student: Any = Net, **options: Any) -> ftrain.Steps:
    teacher = tasks.Teacher(module)
    loss_fn = functools.partial(loss, teacher=teacher)
    optimizer = options.pop("optimizer", optim.sgd(0.1))
    return tasks.with_teacher(ftrain.make_steps(student, loss_fn, optimizer, **options), teacher)
