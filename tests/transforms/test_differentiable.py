"""`differentiable`: the values of a step, and derivatives of every leaf of its state and batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim, tasks
from ftrain.core import tree
from ftrain.core._kept_graph import keeps_graph
from ftrain.testing import assert_same_bits
from ftrain.transforms import differentiable
from tests.transforms.unrolled import batches, difference, relative, steps_of, validation

ADAM = optim.with_hyperparams(optim.adam, learning_rate=0.02)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate": 5},
    "ignore": {"nonfinite": "ignore"},
    "raise": {"nonfinite": "raise"},
    "16-mixed": {"precision": "16-mixed"},
}


def one(batches: Any) -> Any:
    return tree.map(lambda x: x[0], batches)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_differentiable_step_has_the_bits_of_the_plain_step(options: dict[str, Any]) -> None:
    steps = steps_of(ADAM, torch.float32, **options)
    state, batch = steps.init_state(0), one(batches(1, dtype=torch.float32))
    expected = steps.train_step(state, batch)
    tracked = state.replace(params=tree.map(lambda p: p.clone().requires_grad_(), state.params))
    kept = differentiable(steps.train_step)
    assert_same_bits(kept(state, batch), expected)
    new = kept(tracked, batch)
    assert all(p.requires_grad for p in new[0].params.values())
    assert_same_bits(tree.map(torch.Tensor.detach, new), expected)
    with torch.no_grad():
        assert not any(x.requires_grad for x in tree.leaves(kept(tracked, batch)))


@pytest.mark.parametrize("options", list(OPTIONS.values())[:4], ids=list(OPTIONS)[:4])
def test_gradient_of_two_steps_equals_finite_differences(options: dict[str, Any]) -> None:
    steps = steps_of(ADAM, **options)
    step = differentiable(steps.train_step)

    def train(state: Any, data: Any) -> Any:
        state, _ = step(state, tree.map(lambda x: x[0], data))
        return step(state, tree.map(lambda x: x[1], data))

    loss = validation(steps, train, 0.02, 2)
    zero = torch.zeros(4, dtype=torch.float64)
    _, found = ftrain.value_and_grad(loss)(zero)
    assert relative(found, difference(loss, zero, 1e-4)) < 1e-8


def test_differentiating_a_plain_step_is_refused_again_after_a_differentiable_step_raised() -> None:
    def fails(model: Any, batch: Any) -> Any:
        assert keeps_graph()
        raise KeyError("x")

    steps = ftrain.make_steps(lambda: nn.Linear(2, 1), fails, optim.sgd(0.1))
    state = steps.init_state(0)
    tracked = state.replace(params=tree.map(lambda p: p.clone().requires_grad_(), state.params))
    with pytest.raises(KeyError):
        differentiable(steps.train_step)(tracked, torch.ones(1, 2))
    assert not keeps_graph()
    with pytest.raises(
        ValueError, match=r"got a gradient with respect to state\.params.*differentiable\(step\)"
    ):
        steps.train_step(tracked, torch.ones(1, 2))


def test_step_has_a_gradient_with_respect_to_a_captured_learning_rate() -> None:
    state = steps_of(optim.sgd(0.1)).init_state(0)
    batch = one(batches(1))

    def moved(rate: torch.Tensor) -> torch.Tensor:
        new, _ = differentiable(steps_of(optim.sgd(rate)).train_step)(state, batch)
        return new.params["0.bias"].sum()

    rate = torch.tensor(0.1, dtype=torch.float64)
    _, slope = ftrain.value_and_grad(moved)(rate)
    result = steps_of(optim.sgd(0.1)).train_step
    grads = result.gradients(state, batch).grads["0.bias"].sum()
    torch.testing.assert_close(slope, -grads, rtol=1e-12, atol=0)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_skipped_step_has_the_derivative_of_the_identity(compiled: bool) -> None:
    steps = steps_of(ADAM)
    state, batch = steps.init_state(0), one(batches(1))
    batch["x"][0, 0] = torch.inf

    def total(params: Any, state: Any, batch: Any) -> Any:
        new, _ = differentiable(steps.train_step)(state.replace(params=params), batch)
        return sum(x.sum() for x in new.params.values())

    gradient = ftrain.value_and_grad(total)
    run = ftrain.compile(gradient, backend="eager") if compiled else gradient
    _, found = run(state.params, state, batch)
    assert_same_bits(found, tree.map(torch.ones_like, state.params))


def test_from_torch_refuses_to_be_differentiated() -> None:
    steps = steps_of(optim.from_torch(torch.optim.Adam, lr=0.1))
    loss = validation(steps, differentiable(steps.train_step), 0.0, 1)
    shift = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"Write optim\.adam"):
        ftrain.value_and_grad(loss)(shift)
    with pytest.raises(NotImplementedError, match=r"in place"):
        torch.func.jvp(loss, (shift,), (torch.ones_like(shift),))


def test_gradient_through_grad_cache_equals_that_of_the_plain_loss() -> None:
    def loss(model: Any, embeddings: torch.Tensor, batch: Any) -> torch.Tensor:
        return tasks.functional.info_nce(embeddings, embeddings.flip(1))

    cached = tasks.grad_cache(lambda model, x: model(x), loss, chunk_size=2)
    batch = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for loss_fn in (cached, lambda model, batch: loss(model, model(batch), batch)):
        steps = ftrain.make_steps(lambda: nn.Linear(3, 2).double(), loss_fn, optim.sgd(0.5))
        state = steps.init_state(0)

        def moved(params: Any, step: Any = steps.train_step, state: Any = state) -> torch.Tensor:
            new = differentiable(step)(state.replace(params=params), batch)[0]
            return new.params["weight"].square().sum()

        found.append(ftrain.value_and_grad(moved)(state.params)[1]["weight"])
    assert relative(*found) < 1e-12


def test_differentiable_refuses_a_compiled_step() -> None:
    with pytest.raises(TypeError, match="not compiled"):
        differentiable(ftrain.compile(steps_of(ADAM).train_step))
