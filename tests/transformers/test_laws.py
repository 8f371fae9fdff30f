"""The laws on tiny, randomly initialized models of the `transformers` library.

The suite takes a dozen architectures; `make transformers` takes all, or a random sample. A model that
ftrain refuses has its entry in `REFUSED`, with the check that raises, the message and the reason.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

import ftrain
from ftrain import optim, testing
from ftrain.testing._global_state import changes, world
from tests.transformers.architectures import ARCHITECTURES, SUITE, Architecture, tested
from tests.transformers.refusals import DRAWS, REFUSED
from tests.transformers.tiny import build

DROPOUT = 0.1
STEPS = 3
# Two runs of the same operators; some models sum in another order under `keyed` (attention dropout).
ROUNDING = 1e-6

transformers.logging.set_verbosity_error()


class Subject:
    """One architecture, whose models are built on demand from one torch seed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.of: Architecture = ARCHITECTURES[name]

    def model(self, dropout: float = DROPOUT) -> Any:
        torch.manual_seed(0)
        return build(self.of, dropout)

    def loss(self, model: Any, batch: Any) -> Any:
        return self.of.loss(model(**batch))

    def steps(self, model: Any) -> ftrain.Steps:
        optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3))
        return ftrain.make_steps(model, loss_of(self.of.loss), optimizer)

    @functools.cached_property
    def built(self) -> ftrain.Steps:
        """Return steps of a function that builds the model."""
        return self.steps(functools.partial(build, self.of, DROPOUT))

    @contextlib.contextmanager
    def refused(self, check: str) -> Iterator[None]:
        """Expect the refusal that `REFUSED` lists for this check, if any."""
        refusal = REFUSED.get((self.name, check))
        if refusal is None:
            yield
            return
        with pytest.raises(refusal.error, match=f"(?s){refusal.match}"):
            yield


def loss_of(loss: Any) -> Any:
    return lambda model, batch: loss(model(**batch))


@pytest.fixture(scope="module", params=tested())
def subject(request: Any) -> Subject:
    return Subject(request.param)


def test_transformers_init_state_is_a_pure_function_of_the_seed(subject: Subject) -> None:
    torch.manual_seed(1)
    around = world()
    with subject.refused("init"):
        state = subject.built.init_state(0)
        testing.assert_same_bits(subject.built.init_state(0), state)
        assert testing.describe_difference(subject.built.init_state(1).params, state.params)
    assert changes(around) == []


def test_eager_steps_are_pure_deterministic_and_keep_the_state_structure(subject: Subject) -> None:
    with subject.refused("eager"):
        model = subject.model()
        step, state = subject.steps(model).train_step, subject.steps(model).init_state(0)
        for i in range(STEPS):
            batch = subject.of.batch(i)
            testing.assert_pure(step, state, batch, model=model)
            testing.assert_deterministic(step, state, batch)
            testing.assert_fixpoint(step, state, batch)
            state, _ = step(state, batch)


def test_compiled_steps_of_transformers_models_equal_eager_steps(subject: Subject) -> None:
    with subject.refused("compiled"):
        state = subject.built.init_state(0)
        step = subject.built.train_step
        compiled = ftrain.compile(step, backend="eager")
        for i in range(STEPS):
            expected = step(state, subject.of.batch(i))
            testing.assert_same_bits(compiled(state, subject.of.batch(i)), expected)
            state = expected[0]
        assert compiled.n_compiles == 1


def test_evaluation_is_pure_and_matches_the_plain_module(subject: Subject) -> None:
    with subject.refused("evaluation"):
        model, batch = subject.model(), subject.of.batch(0)
        steps = subject.steps(model)
        state = steps.init_state(0)
        testing.assert_evaluation_is_pure(steps.train_step, steps.eval_step, state, batch)
        found = steps.eval_step(state, batch)["loss"]
        model.eval()
        with torch.no_grad():
            expected = subject.loss(model, batch)
        testing.assert_close_norm(found, expected, ROUNDING)


def plain_gradients(subject: Subject, model: Any, batch: Any) -> tuple[torch.Tensor, Any]:
    """Return the loss and the gradients of a model in training mode, by plain PyTorch."""
    model.zero_grad()
    loss = subject.loss(model.train(), batch)
    loss.backward()
    grads = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    return loss.detach(), grads


def test_loss_and_gradients_match_plain_pytorch(subject: Subject) -> None:
    with subject.refused("gradients"):
        model, batch = subject.model(dropout=0.0), subject.of.batch(0)
        state = subject.steps(model).init_state(0)
        result = ftrain.gradients(ftrain.bind(model), loss_of(subject.of.loss))(state, batch)
        loss, expected = plain_gradients(subject, model, batch)
        if subject.name in DRAWS:
            others = (plain_gradients(subject, model, batch) for _ in range(10))
            assert any(testing.describe_difference(each, (loss, expected)) for each in others)
            return
        assert any(bool(grad.any()) for grad in expected.values())
        testing.assert_close_norm(result.metrics["loss"], loss, ROUNDING)
        testing.assert_close_norm(result.grads, expected, ROUNDING)


def test_gradient_checkpointing_keeps_the_bits_of_a_step(subject: Subject) -> None:
    model, batch = subject.model(), subject.of.batch(0)
    if not model.supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support .* checkpointing"):
            model.gradient_checkpointing_enable()
        return
    with subject.refused("checkpointing"):
        steps = subject.steps(model)
        state = steps.init_state(0)
        expected = steps.train_step(state, batch)
        model.gradient_checkpointing_enable()
        testing.assert_same_bits(subject.steps(model).train_step(state, batch), expected)


def test_every_expected_error_belongs_to_a_tested_architecture() -> None:
    assert {name for name, _ in REFUSED} | set(DRAWS) <= set(ARCHITECTURES)
    assert set(SUITE) <= set(ARCHITECTURES)
