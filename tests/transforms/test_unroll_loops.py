"""Compiled, `unroll` is a loop of loops: values, derivatives, size of the program, and memory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core import tree
from ftrain.testing import assert_peak_memory, assert_same_bits
from ftrain.transforms import differentiable, unroll
from tests.campaign import choice, long
from tests.transforms.unrolled import batches, relative, steps_of

STEPS = steps_of(optim.with_hyperparams(optim.adam, learning_rate=0.02))
RATE = torch.tensor(0.02, dtype=torch.float64)


def hypergradient(k: int, **options: Any) -> Any:
    """Return the gradient, by rate and batches, of a loss after training and of the training losses."""
    train = unroll(STEPS.train_step, k, **options)

    def loss(given: Any, state: Any) -> torch.Tensor:
        rate, data = given
        opt_state = optim.set_hyperparams(state.opt_state, learning_rate=rate)
        last, metrics = train(state.replace(opt_state=opt_state), data)
        return last.params["0.weight"].sum() + (metrics["loss"] ** 2).sum()

    return ftrain.value_and_grad(loss)


@pytest.mark.parametrize(
    ("truncate", "k"),
    # k = 1 in windows of 4 is k = 1 without windows, and k = 9 has both windows of k = 5.
    choice(
        [*((None, k) for k in (1, 2, 5, 9)), (4, 2), (4, 9)],
        itertools.product([None, 4], [1, 2, 5, 9]),
    ),
)
def test_traced_gradient_equals_the_eager_one(k: int, truncate: int | None) -> None:
    gradient = hypergradient(k, truncate=truncate)
    given, state = (RATE, batches(k)), STEPS.init_state(0)
    found = ftrain.compile(gradient, backend="eager")(given, state)
    expected = gradient(given, state)
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert relative(a, b) < 1e-12


def test_traced_second_order_gradient_equals_the_eager_one() -> None:
    gradient = hypergradient(3)

    def slope(rate: torch.Tensor, data: Any, state: Any) -> torch.Tensor:
        return gradient((rate, data), state)[1][0]

    second = ftrain.value_and_grad(slope)
    args = (RATE, batches(3), STEPS.init_state(0))
    found = ftrain.compile(second, backend="eager")(*args)
    assert relative(torch.stack(found), torch.stack(second(*args))) < 1e-11


def test_traced_steps_have_the_bits_of_eager_ones() -> None:
    train = unroll(STEPS.train_step, 5)
    state, data = STEPS.init_state(0), batches(5)
    assert_same_bits(ftrain.compile(train, backend="eager")(state, data), train(state, data))


def test_size_of_the_program_does_not_depend_on_the_number_of_steps() -> None:
    sizes = []
    for k in (9, 100):
        graph = ftrain.compile(hypergradient(k)).graph((RATE, batches(k)), STEPS.init_state(0))
        modules = [m for m in graph.modules() if isinstance(m, torch.fx.GraphModule)]
        sizes.append(sum(len(m.graph.nodes) for m in modules))
    assert sizes[0] == sizes[1]


def test_steps_without_batches_are_unrolled_and_traced() -> None:
    steps = ftrain.make_steps(
        lambda: nn.Linear(3, 1).double(),
        lambda model, batch: model.weight.square().sum(),
        optim.with_hyperparams(optim.sgd, learning_rate=0.1),
    )
    train, state = unroll(steps.train_step, 3), steps.init_state(0)

    def loss(rate: torch.Tensor) -> torch.Tensor:
        opt_state = optim.set_hyperparams(state.opt_state, learning_rate=rate)
        return train(state.replace(opt_state=opt_state), ())[0].params["weight"].sum()

    gradient = ftrain.value_and_grad(loss)
    found = ftrain.compile(gradient, backend="eager")(RATE)
    assert relative(torch.stack(found), torch.stack(gradient(RATE))) < 1e-12


def training(k: int) -> tuple[ftrain.Steps, ftrain.TrainState, torch.Tensor]:
    steps = ftrain.make_steps(
        lambda: nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32)),
        lambda model, x: model(x).square().mean(),
        optim.adam(1e-3),
    )
    data = torch.randn(k, 64, 32, generator=torch.Generator().manual_seed(0))
    return steps, steps.init_state(0), data


def peak(k: int, remat: bool, compiled: bool) -> int:
    steps, state, data = training(k)
    train = unroll(steps.train_step, k, remat=remat)

    def loss(params: Any, state: Any, data: Any) -> torch.Tensor:
        last, _ = train(state.replace(params=params), data)
        return differentiable(steps.eval_step)(last, data[0])["loss"]

    gradient: Any = ftrain.value_and_grad(loss)
    if compiled:
        gradient = ftrain.compile(gradient)
    gradient(state.params, state, data)
    with assert_peak_memory(None) as memory:
        gradient(state.params, state, data)
    return memory.peak


def test_unroll_with_recomputation_takes_less_than_a_fifth_of_the_memory_of_one_without() -> None:
    """Measured 0.11 for 36 steps; 12 states and one graph, against 36 graphs."""
    assert peak(36, remat=True, compiled=False) < peak(36, remat=False, compiled=False) / 5


@pytest.mark.inductor
@long
def test_compiled_unroll_of_100_steps_takes_less_than_a_quarter_of_the_memory_of_an_eager_one() -> (
    None
):
    """Measured 0.16 of the memory of the whole graph, which is that of the eager one."""
    assert peak(100, remat=True, compiled=True) < peak(100, remat=False, compiled=False) / 4
