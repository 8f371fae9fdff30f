"""Modules nested deeper than Python's usual recursion limit allows."""

from __future__ import annotations

import contextlib
import itertools
import sys
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, testing
from ftrain.core._recursion import deep_enough, limit_restored


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


@pytest.mark.parametrize("depths", [*itertools.product([1, 150, 300], repeat=3)], ids=str)
def test_recursion_limit_is_that_of_the_deepest_running_call(depths: tuple[int, ...]) -> None:
    """Calls of several threads may end in any order."""
    usual = sys.getrecursionlimit()
    limits = {}
    for depth in (1, 150, 300):
        with deep_enough(depth):
            limits[depth] = sys.getrecursionlimit()
    assert limits[1] == usual
    assert limits[150] >= usual + 4 * 150
    assert limits[300] >= usual + 4 * 300
    for order in itertools.permutations(range(len(depths))):
        contexts = [deep_enough(depth) for depth in depths]
        for i, context in enumerate(contexts):
            context.__enter__()
            assert sys.getrecursionlimit() == limits[max(depths[: i + 1])]
        for i, place in enumerate(order, 1):
            contexts[place].__exit__(None, None, None)
            left = [depths[each] for each in order[i:]]
            assert sys.getrecursionlimit() == limits[max(left, default=1)]


@pytest.mark.parametrize("ends_inside", [False, True])
@pytest.mark.parametrize("depth", [1, 300])
def test_code_that_changes_the_recursion_limit_gets_it_restored(
    depth: int, ends_inside: bool
) -> None:
    usual = sys.getrecursionlimit()
    call = contextlib.ExitStack()
    call.enter_context(deep_enough(depth))
    raised = sys.getrecursionlimit()
    with limit_restored():
        sys.setrecursionlimit(raised + 1234)
        if ends_inside:  # a deep call of another thread ends meanwhile
            call.close()
    assert sys.getrecursionlimit() == (usual if ends_inside else raised)
    call.close()
    assert sys.getrecursionlimit() == usual
