"""Test checks of compiled steps, exceptions and gradients on faulty steps, and `check_all`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, testing
from tests.testing import plain
from tests.testing.faults import BATCHES, STATE, X, line_with, violation

HERE = Path(__file__).name


# Compiled


def test_check_compiled_names_the_operator_with_a_python_number_fixed_at_trace_time() -> None:
    rates = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])

    def step(state: Any, batch: Any) -> Any:
        rate = next(rates)
        return {**state, "w": state["w"] - rate * batch}, {}  # a number that changes

    found = violation(testing.check_compiled, step, BATCHES, state=STATE)
    assert found.operator == "aten.mul.Tensor"
    assert line_with(__file__, "a number that changes") in str(found.line)


def test_check_compiled_compares_norms_within_the_given_tolerance() -> None:
    calls = []

    def fn(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x + 1e-5 * len(calls)

    testing.check_compiled(fn, args=(torch.ones(4),), relative=1e-3)
    found = violation(testing.check_compiled, fn, args=(torch.ones(4),), relative=1e-7)
    assert "relative norm" in found.summary


# Exceptions


def test_check_exception_safety_names_the_operator_after_which_the_module_stays_changed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def step(state: Any, batch: Any) -> Any:
        model.eval()
        with torch.no_grad():
            out = model(batch)  # an exception here leaves the module in eval mode
        model.train()
        return {"w": out}, {}

    testing.check_pure(step, BATCHES, state=STATE)
    found = violation(testing.check_exception_safety, step, BATCHES, state=STATE)
    assert "an exception at operator 1 of" in found.summary
    assert model.training
    assert line_with(__file__, "an exception here leaves the module in eval mode") in str(
        found.line
    )


def test_check_exception_safety_finds_generators_and_modes_that_are_not_restored() -> None:
    def seeds(state: Any, batch: Any) -> Any:
        before = torch.get_rng_state()
        torch.manual_seed(1234)
        noise = torch.randn(8)
        torch.set_rng_state(before)
        return {**state, "w": state["w"] + noise}, {}

    found = violation(testing.check_exception_safety, seeds, BATCHES, state=STATE)
    assert "left the random state of torch changed" in found.summary

    def switches(state: Any, batch: Any) -> Any:
        torch.set_grad_enabled(False)
        w = state["w"] + batch
        torch.set_grad_enabled(True)
        return {**state, "w": w}, {}

    try:
        found = violation(testing.check_exception_safety, switches, BATCHES, state=STATE)
    finally:
        torch.set_grad_enabled(True)
    assert "left the grad mode changed" in found.summary


def test_check_exception_safety_injects_errors_at_operators_of_the_backward_pass_too() -> None:
    model = nn.Linear(8, 8)

    def step(state: Any, batch: Any) -> Any:
        loss = model(batch).square().sum()
        one = torch.ones(())  # autograd would make it outside of the backward pass
        model.weight.requires_grad_(False)
        grads = torch.autograd.grad(loss, [model.bias], one)
        model.weight.requires_grad_(True)
        return {"w": state["w"] - grads[0]}, {}

    testing.check_pure(step, BATCHES, state=STATE)
    found = violation(testing.check_exception_safety, step, BATCHES, state=STATE)
    assert str(found.line).endswith("(in the backward pass)")


def test_check_exception_safety_finds_an_input_that_is_changed_temporarily() -> None:
    def step(state: Any, batch: Any) -> Any:
        state["w"].add_(batch)
        loss = state["w"].exp().sum()  # the state is still changed
        state["w"].sub_(batch)
        return {"w": state["w"] - loss}, {}

    found = violation(testing.check_exception_safety, step, [torch.ones(8)], state=STATE)
    assert "left an input changed: state['w'] at (0,): expected 0.0, got 1.0" in found.summary
    assert line_with(__file__, "the state is still changed") in str(found.line)


def test_check_exception_safety_reports_how_many_operators_it_sampled() -> None:
    def step(state: Any, batch: Any) -> Any:
        w = state["w"]
        for _ in range(30):
            w = w + batch
        return {**state, "w": w}, {}

    report = testing.check_exception_safety(step, BATCHES[:1], state=STATE, most=7)
    assert report.rows[0].amount == "7 operators of 30, drawn at random"
    report = testing.check_exception_safety(step, BATCHES[:1], state=STATE)
    assert report.rows[0].amount == "30 operators"


# Law 11


def test_check_gradients_names_the_parameter_that_is_detached_from_the_loss() -> None:
    class Cut(nn.Module):
        """Network whose second layer is cut from the graph by mistake."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).tanh().detach()) + self.first(x)[:, :3]

    def loss_fn(model: Any, batch: Any) -> Any:
        return F.cross_entropy(model(batch["x"]), batch["y"])

    steps = ftrain.make_steps(Cut, loss_fn, optim.sgd(0.1))
    found = violation(testing.check_gradients, steps, plain.batches(1))
    assert "the gradient of ['first." in found.summary
    assert found.difference is not None
    assert found.difference.got != found.difference.expected


def test_check_gradients_finds_a_wrong_backward_of_an_autograd_function() -> None:
    class Square(torch.autograd.Function):
        """Square whose backward forgets a factor."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return grad * ctx.saved_tensors[0]

    found = violation(testing.check_gradients, Square.apply, args=(torch.ones(3),))
    assert "the gradient of [0] is wrong at (0,)" in found.summary


# All


def test_check_all_reports_every_law_and_raises_for_the_first_violation() -> None:
    def step(state: Any, batch: Any) -> Any:
        return {**{k: v.clone() for k, v in state.items()}, "w": state["w"] + torch.rand(8)}, {}

    with pytest.raises(testing.LawViolation, match="random state of torch") as caught:
        testing.check_all(step, BATCHES, state=STATE, fast=True)
    reports = caught.value.reports
    assert reports is not None
    assert reports["pure"].outcome == reports["keyed"].outcome == "violated"
    assert reports["fixpoint"].outcome == "passed"
    assert reports["evaluation"].outcome == "not checked"
    assert "keyed" in caught.value.__notes__[0]


def test_check_all_refuses_unknown_laws_and_wrong_arguments() -> None:
    step = functools.partial(lambda state, batch: (state, {}))
    with pytest.raises(ValueError, match=r"skip: expected names among pure, .*got \['purity'\]"):
        testing.check_all(step, BATCHES, state=STATE, skip=["purity"])
    with pytest.raises(TypeError, match=r"batches: expected a list.*Write \[batch\]"):
        testing.check_all(step, X, state=STATE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="state: expected the state before the first batch"):
        testing.check_all(step, BATCHES)
    with pytest.raises(TypeError, match=r"returns \(state, metrics\), got a Tensor"):
        testing.check_pure(lambda state, batch: batch, BATCHES, state=STATE)
