"""A loss function with a parameter `extras` reads `state.extras`, which no gradient is taken of."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, random
from ftrain.core import tree
from ftrain.core.errors import ImpureFunctionError
from ftrain.testing import assert_same_bits
from tests.compile.cases import same_bytes

X = torch.linspace(-1, 1, 24).view(4, 6)


def towards(model: Any, batch: Tensor, extras: Any) -> Any:
    """Return the squared distance of the outputs to those of a matrix in the extras."""
    wanted = batch @ extras["target"]["w"]
    return (model(batch) - wanted).square().mean(), {"wanted": wanted.mean()}


def keyword_only(model: Any, batch: Tensor, *, extras: Any = None) -> Any:
    return towards(model, batch, extras)


def with_empty_default(model: Any, batch: Tensor, extras: Any = ()) -> Any:
    return towards(model, batch, extras)


def with_key(model: Any, batch: Tensor, key: Tensor, extras: Any) -> Any:
    assert key.shape == (2,)
    return towards(model, batch, extras)


def scaled(model: Any, batch: Tensor, extras: Any, scale: float = 1.0) -> Any:
    return towards(model, batch, extras)


def make() -> nn.Module:
    return nn.Linear(6, 2)


def steps_of(loss_fn: Any, **options: Any) -> tuple[ftrain.Steps, ftrain.TrainState]:
    steps = ftrain.make_steps(make, loss_fn, optim.sgd(0.1), **options)
    target = {"w": random.normal(random.key(5), (6, 2))}
    return steps, steps.init_state(0).replace(extras={"target": target, "count": torch.tensor(3)})


@pytest.mark.parametrize(
    "loss_fn",
    [
        towards,
        keyword_only,
        with_empty_default,
        with_key,
        functools.partial(scaled, scale=2.0),
    ],
    ids=["positional", "keyword only", "empty default", "with a key", "partial"],
)
def test_every_kind_of_callable_loss_can_read_the_extras(loss_fn: Any) -> None:
    expected, found = (
        steps.train_step(state, X) for steps, state in map(steps_of, (towards, loss_fn))
    )
    assert_same_bits(found, expected)


def test_gradients_of_a_loss_that_reads_extras_equal_those_with_a_captured_constant() -> None:
    steps, state = steps_of(towards)
    target = state.extras["target"]["w"].clone()

    def captured(model: Any, batch: Tensor) -> Any:
        return (model(batch) - batch @ target).square().mean()

    expected = ftrain.gradients(make, captured)(state, X).grads
    assert_same_bits(steps.train_step.gradients(state, X).grads, expected)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_extras_keep_their_bytes_eager_compiled_donated_and_vmapped(
    accumulate: int, precision: str
) -> None:
    steps, state = steps_of(towards, accumulate=accumulate, precision=precision)
    before = tree.map(torch.clone, state.extras)
    new, metrics = steps.train_step(state, X)
    assert_same_bits(new.extras, before)
    compiled = ftrain.compile(steps.train_step, backend="eager")
    assert_same_bits(compiled(state, X), (new, metrics))
    rows = tree.map(lambda leaf: torch.stack([leaf, leaf]), state)
    mapped, _ = torch.vmap(steps.train_step, (0, None))(rows, X)
    assert_same_bits(tree.map(lambda leaf: leaf[1], mapped).extras, before)
    donated = ftrain.compile(steps.train_step, backend="eager", donate=True)
    again, _ = donated(donated(tree.map(torch.clone, state), X)[0], X)
    assert_same_bits(again, steps.train_step(new, X)[0])


def test_each_row_of_a_vmapped_step_reads_its_own_extras() -> None:
    steps, state = steps_of(towards)
    other = {**state.extras, "target": {"w": -state.extras["target"]["w"]}}
    states = [state, state.replace(extras=other)]
    rows = tree.map(lambda *leaves: torch.stack(leaves), *states)
    mapped, _ = torch.vmap(steps.train_step, (0, None))(rows, X)
    for i, one in enumerate(states):
        expected = steps.train_step(one, X)[0].params
        for name, value in expected.items():
            torch.testing.assert_close(mapped.params[name][i], value)


def test_extras_are_read_in_the_precision_of_the_parameters() -> None:
    seen = {}

    def loss_fn(model: Any, batch: Tensor, extras: Any) -> Any:
        seen["target"], seen["count"] = extras["target"]["w"].dtype, extras["count"].dtype
        return towards(model, batch, extras)

    steps, state = steps_of(loss_fn, precision="bf16-true")
    for call in (lambda: steps.train_step(state, X), lambda: steps.eval_step(state, X)):
        seen.clear()
        call()
        assert seen == {"target": torch.bfloat16, "count": torch.int64}


def test_eval_step_and_closures_read_the_extras() -> None:
    steps, state = steps_of(towards)
    loss = steps.train_step(state, X)[1]["loss"]
    assert same_bytes(steps.eval_step(state, X)["loss"], loss)
    closures = steps.train_step.gradients.closures(state, X)
    assert same_bytes(closures["value_fn"](state.params), loss)
    assert_same_bits(closures["grad_fn"](state.params), steps.train_step.gradients(state, X).grads)


@pytest.mark.parametrize("how", ["counted", "hidden"])
def test_loss_that_writes_to_the_extras_raises(how: str) -> None:
    def loss_fn(model: Any, batch: Tensor, extras: Any) -> Any:
        w = extras["target"]["w"]
        (w if how == "counted" else w.data).mul_(0.5)
        return towards(model, batch, extras)

    steps, state = steps_of(loss_fn)
    with pytest.raises(ImpureFunctionError, match=r"state\.extras\['target'\]\['w'\]"):
        steps.train_step(state, X)


@pytest.mark.parametrize("entry", ["count", "queue"])
@pytest.mark.parametrize("compiled", [False, True])
def test_loss_that_assigns_an_entry_of_the_extras_raises(entry: str, compiled: bool) -> None:
    def loss_fn(model: Any, batch: Tensor, extras: Any) -> Any:
        extras[entry] = extras["count"] + 1
        return towards(model, batch, extras)

    steps, state = steps_of(loss_fn)
    step = ftrain.compile(steps.train_step, backend="eager") if compiled else steps.train_step
    for call in (step, steps.eval_step):
        with pytest.raises(ImpureFunctionError, match=rf"assigned state\.extras\['{entry}'\]"):
            call(state, X)


def test_loss_that_deletes_entries_of_the_extras_leaves_the_state_unchanged() -> None:
    def loss_fn(model: Any, batch: Tensor, extras: Any) -> Any:
        found = towards(model, batch, extras)
        del extras["target"]["w"]
        return found

    steps, state = steps_of(loss_fn)
    assert_same_bits(steps.train_step(state, X)[0], steps_of(towards)[0].train_step(state, X)[0])


def test_extras_bound_by_functools_partial_are_not_replaced() -> None:
    zeros = {"target": {"w": torch.zeros(6, 2)}}
    steps, state = steps_of(functools.partial(towards, extras=zeros))
    assert float(steps.train_step(state, X)[1]["wanted"]) == 0


def test_viewing_a_state_through_a_function_gives_the_gradients_at_the_state_that_it_returns() -> (
    None
):
    steps, state = steps_of(towards)
    gradients = steps.train_step.gradients

    def view(state: Any) -> Any:
        return state.replace(extras={"target": {"w": state.params["weight"].T * 2}})

    viewed = gradients.viewing(view)
    assert_same_bits(viewed(state, X), gradients(view(state), X))
    assert not same_bytes(viewed(state, X).grads, gradients(state, X).grads)
    value, expected = (
        each.closures(at, X)["value_fn"](state.params)
        for each, at in ((viewed, state), (gradients, view(state)))
    )
    assert same_bytes(value, expected)
