"""State that a model hides from a step is restored after every call, or raises."""

from __future__ import annotations

import collections
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, testing
from ftrain.core.errors import ImpureFunctionError
from tests.core.hidden import REFUSED, RESTORED, Hides

BATCH = {"x": torch.linspace(-1, 1, 32).view(8, 4), "y": torch.linspace(1, -1, 24).view(8, 3)}


def mse(model: Any, batch: Any) -> torch.Tensor:
    return F.mse_loss(model(batch["x"]), batch["y"])


def make(model: Any, loss_fn: Any = mse, **options: Any) -> ftrain.Steps:
    return ftrain.make_steps(model, loss_fn, optim.sgd(0.1), **options)


@pytest.mark.parametrize("kind", RESTORED, ids=lambda kind: kind.__name__)
def test_hidden_state_of_a_model_built_by_a_function_does_not_survive_a_step(
    kind: type[Hides],
) -> None:
    steps = make(kind)
    state = steps.init_state(0)
    step = ftrain.compile(steps.train_step, backend="eager")
    first = steps.train_step(state, BATCH)
    for call in (steps.train_step, step, steps.train_step, step):
        testing.assert_same_bits(call(state, BATCH), first)
    # Two evaluations and a step between them, and a step on the new state.
    scored = steps.eval_step(state, BATCH)
    second = steps.train_step(first[0], BATCH)
    testing.assert_same_bits(steps.eval_step(state, BATCH), scored)
    testing.assert_same_bits(step(first[0], BATCH), second)


@pytest.mark.parametrize("kind", RESTORED, ids=lambda kind: kind.__name__)
def test_hidden_state_of_a_module_instance_does_not_survive_a_step(kind: type[Hides]) -> None:
    steps = make(kind())
    state = steps.init_state(0)
    first = steps.train_step(state, BATCH)
    scored = steps.eval_step(state, BATCH)
    testing.assert_same_bits(steps.train_step(state, BATCH), first)
    testing.assert_same_bits(steps.eval_step(state, BATCH), scored)


@pytest.mark.parametrize("kind", RESTORED, ids=lambda kind: kind.__name__)
def test_nested_call_of_a_bound_model_starts_from_its_initial_hidden_state(
    kind: type[Hides],
) -> None:
    apply = ftrain.bind(kind)
    params, buffers = apply.init(ftrain.random.key(0))
    key, x = ftrain.random.key(1), BATCH["x"]

    def twice(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        before = model(x)
        inner, _ = apply(params, buffers, key, x, training=False)
        return before, inner, model(x)

    before, inner, after = apply.call(twice, params, buffers, True)[0]
    testing.assert_same_bits(inner, apply(params, buffers, key, x, training=False)[0])

    def plainly(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return model(x), model(x)

    testing.assert_same_bits((before, after), apply.call(plainly, params, buffers, True)[0])


def test_hidden_state_of_a_model_is_restored_after_the_model_raises() -> None:
    class Fails(Hides):
        def build(self) -> None:
            self.calls = [0]

        def count(self) -> int:
            self.calls[0] += 1
            self.register_buffer("late", torch.ones(()))
            self.register_forward_hook(lambda *_: None)
            if self.calls[0] == 1 and self.training:
                raise KeyError("on purpose")
            del self.late
            return self.calls[0]

    steps = make(Fails)
    state = steps.init_state(0)
    for _ in range(2):
        with pytest.raises(KeyError, match="on purpose"):
            steps.train_step(state, BATCH)
    scored = steps.eval_step(state, BATCH)
    testing.assert_same_bits(steps.eval_step(state, BATCH), scored)


CALLS: list[int] = []


class Logging(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        CALLS.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize("given", [False, True], ids=["factory", "module"])
def test_global_variable_that_a_forward_pass_changes_keeps_the_change(given: bool) -> None:
    CALLS.clear()
    model = Logging(2, 2) if given else lambda: Logging(2, 2)
    steps = ftrain.make_steps(model, lambda model, batch: model(batch).mean(), optim.sgd(0.1))
    state = steps.init_state(0)
    for rows in (1, 2, 3):
        state, _ = steps.train_step(state, torch.ones(rows, 2))
    assert CALLS == [1, 2, 3]


def test_user_changes_to_model_attributes_between_calls_take_effect() -> None:
    config = SimpleNamespace(scale=1.0, offsets=[0.0], calls=0)

    class Configured(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 3)
            self.config = config

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            config.calls += 1
            config.offsets.append(1.0)
            return super().forward(x) * self.config.scale + self.config.offsets[0]

    steps = make(Configured)
    state = steps.init_state(0)
    plain = steps.eval_step(state, BATCH)
    config.scale, config.offsets = 2.0, [3.0]
    scaled = steps.eval_step(state, BATCH)
    assert float(scaled["loss"]) != float(plain["loss"])
    assert (config.scale, config.offsets, config.calls) == (2.0, [3.0], 0)
    config.offsets[0] = 4.0
    assert float(steps.eval_step(state, BATCH)["loss"]) != float(scaled["loss"])
    assert config.offsets == [4.0]


def test_parameters_that_a_module_holds_in_objects_and_closures_are_trained() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3, bias=False)
            weight = self.a.weight
            self.box = SimpleNamespace(weight=weight, queue=collections.deque([weight]))
            self.fn = lambda x: F.linear(x, weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.linear(x, self.box.weight) + F.linear(x, self.box.queue[0])
            return y + self.fn(x) + self.a(x)

    steps = make(Holds)
    plain = make(lambda: nn.Linear(4, 3, bias=False), lambda m, b: mse(lambda x: 4 * m(x), b))
    state = steps.init_state(0)
    weight = state.params["a.weight"]
    other = plain.init_state(0)
    new, _ = plain.train_step(other.replace(params={"weight": weight}), BATCH)
    testing.assert_close_norm(
        steps.train_step(state, BATCH)[0].params["a.weight"], new.params["weight"], 1e-6
    )


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_change_of_hidden_model_state_that_cannot_be_undone_raises(kind: type[Hides]) -> None:
    steps = make(kind)
    state = steps.init_state(0)
    with pytest.raises(ImpureFunctionError, match=r"generator"):
        steps.train_step(state, BATCH)
    with pytest.raises(ImpureFunctionError, match=r"generator"):
        steps.eval_step(state, BATCH)
