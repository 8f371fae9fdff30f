"""Training runs with hyper-parameters in their state, for tests of transformations of steps."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

import ftrain
from ftrain import optim, tree
from tests.zoo import ZOO


def build(learning_rate: Any, momentum: Any) -> Any:
    """Clip, then SGD with a schedule: rounding noise of a zero gradient stays noise, as not in Adam."""
    schedule = optim.warmup_cosine(learning_rate, 2, 200)
    return optim.chain(optim.clip_by_global_norm(1.0), optim.sgd(schedule, momentum=momentum))


@functools.cache
def steps(
    model: str = "mlp",
    precision: Any = "32-true",
    accumulate: int = 1,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
) -> ftrain.Steps:
    case = ZOO[model]
    return ftrain.make_steps(
        case.model,
        case.loss_fn,
        optim.with_hyperparams(build, learning_rate=learning_rate, momentum=momentum),
        precision=precision,
        accumulate=accumulate,
    )


def batches(model: str, n: int) -> list[Any]:
    return [ZOO[model].batch(seed, 8) for seed in range(n)]


def traced(step: Any, mode: str, **options: Any) -> Any:
    return step if mode == "eager" else ftrain.compile(step, backend="eager", **options)


class Line(nn.Module):
    """A model of two weights in scalar operators, whose vmapped rows round as single runs do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x[:, 0] * self.weight[0] + x[:, 1] * self.weight[1]
        return y


def squares(model: Any, batch: Any) -> torch.Tensor:
    errors = (model(batch["x"]) - batch["y"]) ** 2
    total: torch.Tensor = functools.reduce(torch.add, errors.unbind())
    return total / len(errors)


def line_steps(optimizer: Any = None, loss_fn: Any = squares) -> ftrain.Steps:
    return ftrain.make_steps(
        Line, loss_fn, optimizer or optim.with_hyperparams(optim.adamw, learning_rate=1e-2)
    )


def line_batch(seed: int, rows: int = 4) -> dict[str, torch.Tensor]:
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "y": x[:, 0] - 2 * x[:, 1]}


def floats(values: Any) -> list[torch.Tensor]:
    return [x for x in tree.leaves(values) if x.is_floating_point()]


def counts(values: Any) -> list[torch.Tensor]:
    """Return the leaves that hold keys, step counts and flags."""
    return [x for x in tree.leaves(values) if not x.is_floating_point()]
