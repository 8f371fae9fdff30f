"""A loss function with a `key` parameter gets its own key, and changes no other draw."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, random
from ftrain.core import tree
from ftrain.core._loss import takes
from ftrain.core.random.keyed import key_of
from tests.compile.cases import same_bytes

X = torch.linspace(-1, 1, 24).view(4, 6)


def noisy(model: Any, batch: Tensor, key: Tensor) -> Any:
    noise = random.normal(key, batch.shape)
    return model(batch + noise).square().mean(), {"noise": noise.sum()}


def keyword_only(model: Any, batch: Tensor, *, key: Tensor) -> Any:
    return noisy(model, batch, key)


def optional(model: Any, batch: Tensor, scale: float = 1.0, key: Tensor | None = None) -> Any:
    assert key is not None
    return noisy(model, batch, key)


class Callable_:
    def __call__(self, model: Any, batch: Tensor, key: Tensor) -> Any:
        return noisy(model, batch, key)

    def method(self, model: Any, batch: Tensor, key: Tensor) -> Any:
        return noisy(model, batch, key)


def with_next_key(model: Any, batch: Tensor) -> Any:
    return noisy(model, batch, random.next_key())


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 2))


def train(loss_fn: Any, mode: str = "eager", accumulate: int = 1) -> Any:
    steps = ftrain.make_steps(make, loss_fn, optim.sgd(0.1), accumulate=accumulate)
    state, step = steps.init_state(0), steps.train_step
    if "vmapped" in mode:
        state = tree.map(lambda leaf: torch.stack([leaf, leaf]), state)
        state = state.replace(rng=random.split(random.key(1), 2))
        step = torch.vmap(step, (0, None))
    if "compiled" in mode:
        step = ftrain.compile(step, backend="eager")
    noises = []
    for _ in range(2):
        state, metrics = step(state, X)
        noises.append(metrics["noise"])
    return state.params, torch.stack(noises)


@pytest.mark.parametrize(
    "loss_fn",
    [
        noisy,
        keyword_only,
        optional,
        Callable_(),
        Callable_().method,
        functools.partial(optional, scale=2),
    ],
    ids=["positional", "keyword only", "optional", "callable", "method", "partial"],
)
def test_every_kind_of_callable_gets_the_same_loss_key(loss_fn: Any) -> None:
    assert same_bytes(train(loss_fn), train(noisy))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss_fn", [noisy, with_next_key])
def test_loss_key_draws_match_in_eager_compiled_and_vmapped_steps(
    loss_fn: Any, accumulate: int
) -> None:
    expected = train(loss_fn, "eager", accumulate)
    assert same_bytes(train(loss_fn, "compiled", accumulate), expected)
    noises = train(loss_fn, "vmapped", accumulate)[1]
    assert same_bytes(train(loss_fn, "compiled vmapped", accumulate)[1], noises)
    assert noises[:, 0].ne(noises[:, 1]).all()
    assert expected[1][0] != expected[1][1]  # each step has another


def test_loss_key_parameter_does_not_change_the_draws_of_the_model() -> None:
    def masks(loss_fn: Any) -> Any:
        gradients = ftrain.gradients(make, loss_fn)
        params, buffers = ftrain.bind(make).init(random.key(0))
        state = ftrain.TrainState(torch.tensor(0), params, buffers, (), (), random.key(7), {})
        return gradients(state, X).grads

    def silent(model: Any, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    def unused(model: Any, batch: Tensor, key: Tensor) -> Tensor:
        random.normal(key, (3,))
        return silent(model, batch)

    assert same_bytes(masks(unused), masks(silent))


def test_each_micro_batch_gets_its_own_loss_key() -> None:
    def loss_fn(model: Any, batch: Tensor, key: Tensor) -> Any:
        return model(batch).mean(), {"noise": random.uniform(key)}

    steps = ftrain.make_steps(make, loss_fn, optim.sgd(0.1), accumulate=4)
    state = steps.init_state(0)
    _, key = random.split(state.rng)
    each = []
    for part in random.split(key, 4):
        with random.keyed(part):
            each.append(random.uniform(key_of("loss")))
    assert len({float(x) for x in each}) == 4
    noise = steps.train_step(state, X)[1]["noise"]
    torch.testing.assert_close(noise, torch.stack(each).mean(), rtol=1e-6, atol=0)


def test_eval_step_passes_a_key_to_the_loss() -> None:
    steps = ftrain.make_steps(make, noisy, optim.sgd(0.1))
    state = steps.init_state(0)
    first, second = steps.eval_step(state, X), steps.eval_step(state, X)
    assert same_bytes(first["noise"], second["noise"])
    other = steps.eval_step(state.replace(rng=random.key(9)), X)
    assert not same_bytes(first["noise"], other["noise"])


def test_loss_key_argument_bound_by_functools_partial_is_not_replaced() -> None:
    bound = functools.partial(noisy, key=random.key(3))
    assert train(bound)[1].eq(random.normal(random.key(3), X.shape).sum()).all()


def test_loss_that_is_a_builtin_without_a_signature_gets_no_key() -> None:
    with pytest.raises(ValueError, match="no signature"):
        inspect.signature(max)
    assert not takes(max, "key")
