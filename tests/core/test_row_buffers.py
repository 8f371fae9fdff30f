"""Buffers that are not mapped, under a vmap whose rows write into them; models bound in transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, random, testing
from ftrain.core import tree
from ftrain.core._row_buffers import RowBuffers, copy_of

ROWS = torch.linspace(-1, 1, 24).reshape(2, 4, 3)
COMPILED = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])


class Counting(nn.Module):
    """A module that adds up its inputs in a buffer, and has a buffer with NaN and -0.0 beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("total", torch.zeros(3))
        self.register_buffer("odd", torch.tensor([float("nan"), -0.0]))

    def forward(self, x: Tensor) -> Tensor:
        self.total += x.sum(0)
        out: Tensor = self.layer(x) + self.total
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)),
    "instance norm": lambda: nn.Sequential(
        nn.Linear(3, 3), nn.InstanceNorm1d(3, track_running_stats=True)
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.Linear(3, 3), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    ),
    "own buffer": Counting,
}


def steps_of(name: str) -> ftrain.Steps:
    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        x = batch[:, :, None].expand(-1, -1, 3) if name == "instance norm" else batch
        value: Tensor = (model(x) - 1).square().mean()
        return value

    return ftrain.make_steps(MODELS[name], loss_fn, optim.sgd(0.1))


@COMPILED
@pytest.mark.parametrize("name", MODELS)
def test_step_vmapped_over_batches_from_one_state_equals_single_steps(
    name: str, compiled: bool
) -> None:
    steps = steps_of(name)
    state = steps.init_state(0)
    step: Any = torch.vmap(steps.train_step, in_dims=(None, 0))
    step = ftrain.compile(step, backend="eager") if compiled else step
    for _ in range(2):
        found = step(state, ROWS)
        for i, batch in enumerate(ROWS):
            row = tree.map(lambda t, i=i: t[i], found)
            expected = steps.train_step(state, batch)
            testing.assert_close_norm(row[0].params, expected[0].params, 1e-6)
            for buffer, value in expected[0].buffers.items():
                torch.testing.assert_close(row[0].buffers[buffer], value, equal_nan=True)
            testing.assert_same_bits(row[0].rng, expected[0].rng)


@COMPILED
def test_vmapped_init_and_train_step_with_batch_norm_compile_to_one_program(compiled: bool) -> None:
    steps = steps_of("batch norm")

    def run(seed: Tensor) -> Any:
        return steps.train_step(steps.init_state(seed), ROWS[0])[0].buffers

    seeds = torch.arange(2)
    mapped: Any = torch.vmap(run)
    found = (ftrain.compile(mapped, backend="eager") if compiled else mapped)(seeds)
    for i, seed in enumerate(seeds):
        testing.assert_close_norm(tree.map(lambda t, i=i: t[i], found), run(seed), 1e-6)


def test_vmapped_step_keeps_the_bits_of_buffers_that_are_not_written() -> None:
    steps = steps_of("own buffer")
    state = steps.init_state(0)
    found = torch.vmap(steps.train_step, in_dims=(None, 0))(state, ROWS)[0].buffers["odd"]
    testing.assert_same_bits(found, state.buffers["odd"].expand(2, 2).clone())


def test_shape_error_outside_of_vmap_does_not_repeat_the_call() -> None:
    calls: list[int] = []

    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(1)
        total = torch.zeros(3)
        total += batch
        return total.sum() + sum(p.sum() for p in model.parameters())

    steps = ftrain.make_steps(lambda: nn.Linear(3, 3), loss_fn, optim.sgd(0.1))
    with pytest.raises(RuntimeError, match="^output with shape"):
        steps.train_step(steps.init_state(0), torch.ones(4, 3))
    assert calls == [1]


@COMPILED
def test_nested_vmaps_give_each_row_its_own_buffers(compiled: bool) -> None:
    apply = ftrain.bind(MODELS["batch norm"])
    params, buffers = apply.init(ftrain.random.key(0))

    def run(scale: Tensor, x: Tensor) -> Tensor:
        after = apply(params, buffers, ftrain.random.key(1), x * scale)[1]
        mean: Tensor = after["1.running_mean"]
        return mean

    scales = torch.tensor([1.0, 2.0, 3.0])
    mapped: Any = torch.vmap(torch.vmap(run, in_dims=(None, 0)), in_dims=(0, None))
    found = (ftrain.compile(mapped, backend="eager") if compiled else mapped)(scales, ROWS)
    expected = torch.stack([torch.stack([run(s, x) for x in ROWS]) for s in scales])
    testing.assert_close_norm(found, expected, 1e-6)


@pytest.mark.parametrize("as_function", [True, False], ids=["function", "instance"])
def test_binding_a_model_inside_a_compiled_vmapped_function_matches_eager(
    as_function: bool,
) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))

    def run(seed: Tensor) -> Tensor:
        key = ftrain.random.key(seed)
        model: Any = (
            (lambda: nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))) if as_function else module
        )
        apply = ftrain.bind(model)
        out: Tensor = apply(*apply.init(key), key, ROWS[0])[0]
        return out

    seeds = torch.arange(2)
    expected = torch.stack([run(seed) for seed in seeds])
    testing.assert_close_norm(torch.vmap(run)(seeds), expected, 1e-6)
    compiled = ftrain.compile(torch.vmap(run), backend="eager")
    testing.assert_close_norm(compiled(seeds), expected, 1e-6)
    single = ftrain.compile(run, backend="eager")
    testing.assert_same_bits(single(seeds[1]), expected[1])


def test_function_whose_write_vmap_refuses_is_repeated_only_in_its_first_call() -> None:
    """A refusal in each call would trace each layer twice."""
    buffers, calls = RowBuffers(), []

    def run(row: Tensor) -> Tensor:
        def add() -> Tensor:
            calls.append(len(calls))
            return copy_of(torch.zeros(3)).add_(row)

        return buffers(add)

    for count in (2, 3):
        assert torch.equal(torch.vmap(run)(ROWS[:, 0]), ROWS[:, 0])
        assert len(calls) == count


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.BatchNorm1d(4), nn.Linear(4, 1))


TRANSFORMED: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Any]]] = {
    "grad": lambda f: torch.func.grad(f),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),)),
    "vjp": lambda f: lambda x: torch.func.vjp(f, x)[1](torch.ones(()))[0],
    "vmap of value_and_grad": lambda f: lambda x: torch.vmap(ftrain.value_and_grad(f))(x[None]),
    "functionalize": lambda f: torch.func.functionalize(f),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_function_that_builds_a_model_is_bound_inside_each_transform(name: str) -> None:
    """The results are those of a model that is bound outside of the transform, to the bit."""

    def loss_of(bind: Callable[[], Any]) -> Callable[[Tensor], Tensor]:
        def loss(x: Tensor) -> Tensor:
            apply = bind()
            params, buffers = apply.init(random.key(0))
            return apply(params, buffers, random.key(1), x)[0].square().mean()

        return loss

    outside = ftrain.bind(noisy)
    x = torch.linspace(-1, 1, 15).reshape(5, 3)
    transform = TRANSFORMED[name]
    found = transform(loss_of(lambda: ftrain.bind(noisy)))(x)
    testing.assert_same_bits(found, transform(loss_of(lambda: outside))(x))


@pytest.mark.parametrize("built", [False, True], ids=["module", "function"])
def test_model_that_holds_a_mapped_tensor_cannot_be_bound_inside_vmap(built: bool) -> None:
    class Holds(nn.Module):
        def __init__(self, x: Tensor) -> None:
            super().__init__()
            self.register_buffer("x", x)

    for transform in (torch.vmap, torch.func.grad):
        with pytest.raises(RuntimeError, match=r"^bind: expected a model without.*outside of the"):
            transform(lambda x: ftrain.bind((lambda: Holds(x)) if built else Holds(x)))(ROWS[0])


def test_error_of_a_function_that_builds_a_model_is_raised_unchanged_inside_transforms() -> None:
    calls = []

    def build() -> nn.Module:
        calls.append(1)
        raise KeyError("user")

    with pytest.raises(KeyError, match="user") as caught:
        torch.func.grad(lambda x: ftrain.bind(build) and x.sum())(torch.ones(2))
    assert len(calls) == 1
    assert caught.value.__cause__ is None
