"""Test deep copies of the functions that ftrain returns, and of modules that hold them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import ftrain
from ftrain import optim, testing

X, Y = torch.randn(2, 6, 3).unbind()


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch) - Y[:, :1]).square().mean()


def test_deep_copies_of_functions_of_ftrain_are_the_functions_themselves() -> None:
    steps = ftrain.make_steps(lambda: nn.Linear(3, 1), loss_fn, optim.sgd(0.1))
    bound, compiled = (
        ftrain.bind(nn.Linear(3, 1)),
        ftrain.compile(steps.train_step, backend="eager"),
    )
    assert copy.deepcopy(bound) is bound
    assert copy.deepcopy(compiled) is compiled
    state = steps.init_state(0)
    expected = steps.train_step(state, X)
    testing.assert_same_bits(copy.deepcopy(steps).train_step(state, X), expected)


def test_model_may_hold_a_bound_model_and_steps() -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)
            self.target = ftrain.bind(nn.Linear(3, 1))
            self.values = self.target.init(ftrain.random.key(1))
            self.inner = ftrain.make_steps(nn.Linear(3, 1), loss_fn, optim.sgd(0.1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + self.target(*self.values, ftrain.random.key(2), x)[0].detach()

    agent = Agent()
    steps = ftrain.make_steps(agent, loss_fn, optim.sgd(0.1))
    _, metrics = steps.train_step(steps.init_state(0), X)
    testing.assert_same_bits(metrics["loss"], loss_fn(agent, X).detach())
