"""Modules nested deeper than Python's usual recursion limit allows."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, testing


def nested(depth: int) -> nn.Module:
    module: nn.Module = nn.Linear(4, 3)
    for _ in range(depth):
        module = nn.Sequential(module)
    return module


def loss_fn(model: Any, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


@pytest.mark.parametrize("given", ["function", "module"])
def test_model_of_400_nested_modules_trains(given: str) -> None:
    limit = sys.getrecursionlimit()
    model = nested(400)
    steps = ftrain.make_steps(
        (lambda: nested(400)) if given == "function" else model, loss_fn, optim.sgd(0.1)
    )
    state, batch = steps.init_state(0), torch.ones(2, 4)
    new, _ = steps.train_step(state, batch)
    testing.assert_same_bits(
        ftrain.compile(steps.train_step, backend="eager")(state, batch)[0], new
    )
    steps.eval_step(state, batch)
    bare = ftrain.make_steps(lambda: nn.Linear(4, 3), loss_fn, optim.sgd(0.1))
    renamed = {name.rpartition(".")[2]: p for name, p in state.params.items()}
    expected, _ = bare.train_step(bare.init_state(0).replace(params=renamed), batch)
    testing.assert_same_bits(list(new.params.values()), list(expected.params.values()))
    assert sys.getrecursionlimit() == limit
    ftrain.bind(model).module(state.params, state.buffers)
