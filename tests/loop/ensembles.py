"""A small ensemble for tests of the loop: models trained by one vmapped step.

The model is written out in scalars, so that a member of the ensemble rounds like a single run: tests
compare their bits.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import torch
from torch import nn

import ftrain
from ftrain import data, optim, tree
from ftrain.loop import Notice, Trainer

MEMBERS = 3


class Line(nn.Module):
    """A model of two weights; `bad` makes the loss of a member NaN on poisoned batches."""

    bad: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2))
        self.register_buffer("bad", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0] * self.weight[0] + x[:, 1] * self.weight[1]


def loss_fn(model: Any, batch: Any) -> Any:
    errors = (model(batch["x"]) - batch["y"]) ** 2
    loss = functools.reduce(torch.add, errors.unbind()) / len(errors)
    poison = torch.where(model.bad * batch["poison"][0] > 0, torch.nan, 1.0)
    return loss * poison, {"largest": ftrain.Max(errors.amax()), "rows": ftrain.Sum(_count(errors))}


def _count(errors: torch.Tensor) -> torch.Tensor:
    return torch.tensor(float(len(errors)))


STEPS = ftrain.make_steps(Line, loss_fn, optim.with_hyperparams(optim.adamw, learning_rate=1e-2))


def member(i: int, bad: bool = False) -> ftrain.TrainState:
    state = STEPS.init_state(i)
    state = state.replace(buffers={"bad": torch.tensor(float(bad))})
    rates = optim.set_hyperparams(state.opt_state, learning_rate=0.01 * (i + 1))
    return state.replace(opt_state=rates)


def ensemble(bad: int | None = 1, members: int = MEMBERS) -> ftrain.TrainState:
    states = [member(i, i == bad) for i in range(members)]
    return tree.map(lambda *leaves: torch.stack(leaves), *states)


def row(state: Any, i: int) -> Any:
    return tree.map(lambda leaf: leaf[i].clone(), state)


def vmapped() -> tuple[Any, Any]:
    return (
        torch.vmap(STEPS.train_step, in_dims=(0, None)),
        torch.vmap(STEPS.eval_step, in_dims=(0, None)),
    )


@functools.cache
def compiled(single: bool) -> tuple[Any, Any]:
    train, evaluate = (STEPS.train_step, STEPS.eval_step) if single else vmapped()
    return (
        ftrain.compile(train, donate=True, backend="eager"),
        ftrain.compile(evaluate, backend="eager"),
    )


def train_data(n: int = 24, poisoned: Any = ()) -> list[Any]:
    """Return batches of 4 rows; those at the positions `poisoned` poison a bad member."""
    g = torch.Generator().manual_seed(0)
    found = []
    for i in range(n):
        x = torch.randn(4, 2, generator=g)
        y = x[:, 0] - 2 * x[:, 1]
        found.append({"x": x, "y": y, "poison": torch.full((4,), float(i in poisoned))})
    return found


def eval_data() -> data.Loader:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(10, 2, generator=g)
    rows = {"x": x, "y": x[:, 0] - 2 * x[:, 1], "poison": torch.zeros(10)}
    return data.Loader(rows, 5, shuffle=False)


def trainer(*callbacks: Any, single: bool = False, **options: Any) -> Trainer:
    return Trainer(compiled(single), callbacks, **{"compile": False, "log_every": 10, **options})


class Notices:
    def __init__(self) -> None:
        self.said: list[str] = []

    def on_notice(self, event: Notice) -> None:
        self.said.append(event.message)


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
