"""Test that the checks of laws 1 to 4 find faults in plain PyTorch steps, and name the remedy."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ftrain
from ftrain import testing
from tests.testing.faults import BATCHES, STATE, line_with, violation

HERE = Path(__file__).name


# Law 1


def test_check_pure_names_operator_and_line_that_write_into_the_state() -> None:
    def step(state: Any, batch: Any) -> Any:
        w = state["w"]
        w -= 0.1 * batch  # writes into the state
        return {**state, "w": w}, {}

    found = violation(testing.check_pure, step, BATCHES, state=STATE)
    assert found.operator == "aten.sub_.Tensor"
    assert found.difference is not None
    assert found.difference.path == "[0]['w']"
    assert found.difference.index == (0,)
    assert line_with(__file__, "writes into the state") in str(found.line)
    assert "state['w'] at (0,): expected 0.0, got 0.1" in found.summary
    assert bool((STATE["w"] == 0).all()), "the check changed the state that it was given"


def test_check_pure_finds_an_entry_added_to_the_state() -> None:
    def step(state: Any, batch: Any) -> Any:
        state["loss"] = batch.mean()
        return {**state}, {}

    found = violation(testing.check_pure, step, BATCHES, state=STATE)
    assert "['loss']" in found.summary


def test_check_pure_finds_changed_statistics_gradients_and_attributes_of_a_captured_module() -> (
    None
):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

    def step(state: Any, batch: Any) -> Any:
        with torch.no_grad():
            return {"w": model(batch.view(1, 8).repeat(2, 1)).sum(0)}, {}

    found = violation(testing.check_pure, step, BATCHES, state=STATE)
    assert "model.1." in found.summary
    assert bool((model[1].running_mean == 0).all()), "the check left the module changed"

    def backward(state: Any, batch: Any) -> Any:
        model[0](batch).sum().backward()
        return dict(state), {}

    found = violation(testing.check_pure, backward, BATCHES, state=STATE)
    assert "the gradient of model.0." in found.summary
    assert model[0].weight.grad is None

    def cached(state: Any, batch: Any) -> Any:
        model.last = batch
        return dict(state), {}

    found = violation(testing.check_pure, cached, BATCHES, state=STATE)
    assert "model" in found.summary
    assert not hasattr(model, "last")


def test_check_pure_finds_state_in_closures_globals_and_optimizers() -> None:
    history: list[Any] = []

    def appends(state: Any, batch: Any) -> Any:
        history.append(1)
        return dict(state), {}

    assert "history" in violation(testing.check_pure, appends, BATCHES, state=STATE).summary
    assert history == []

    def counts(state: Any, batch: Any) -> Any:
        global _count  # noqa: PLW0603  # the fault
        _count += 1
        return dict(state), {}

    found = violation(testing.check_pure, counts, BATCHES, state=STATE)
    assert "the global variable '_count'" in found.summary
    assert _count == 0

    weight = nn.Parameter(torch.ones(8))
    optimizer = torch.optim.Adam([weight])

    def steps(state: Any, batch: Any) -> Any:
        weight.grad = batch
        optimizer.step()
        return {"w": weight.detach().clone()}, {}

    found = violation(testing.check_pure, steps, BATCHES, state=STATE)
    assert "optimizer" in found.summary
    assert bool((weight == 1).all())


_count = 0


def test_check_pure_names_the_line_that_draws_from_a_global_generator() -> None:
    def step(state: Any, batch: Any) -> Any:
        noise = torch.randn(8)  # draws for the law of purity
        return {**state, "w": state["w"] + noise}, {}

    found = violation(testing.check_pure, step, BATCHES, state=STATE)
    assert found.summary == "the call changed the random state of torch"
    assert found.operator == "aten.randn.default"
    assert line_with(__file__, "draws for the law of purity") in str(found.line)


@pytest.mark.parametrize("alias", [lambda w: w, lambda w: w[:4], lambda w: w.view(2, 4)])
def test_check_pure_finds_outputs_that_share_memory_with_inputs(
    alias: Callable[[Any], Any],
) -> None:
    def step(state: Any, batch: Any) -> Any:
        return {**{k: v.clone() for k, v in state.items()}, "old": alias(state["w"])}, {}

    found = violation(testing.check_pure, step, BATCHES, state=STATE)
    assert "shares memory with input state['w']" in found.summary


# Law 2


def test_check_deterministic_names_the_first_operator_whose_result_differs() -> None:
    def step(state: Any, batch: Any) -> Any:
        h = batch.exp()
        g = h + torch.full((8,), time.perf_counter_ns() % 2**20)  # depends on the time
        return {"w": g.sin()}, {}

    found = violation(testing.check_deterministic, step, BATCHES, state=STATE)
    assert found.operator == "aten.full.default"
    assert line_with(__file__, "depends on the time") in str(found.line)
    assert found.difference is not None
    assert found.difference.ulps is not None


def test_check_deterministic_finds_state_that_grows_in_a_closure() -> None:
    calls = []

    def step(state: Any, batch: Any) -> Any:
        calls.append(1)
        return {**state, "w": state["w"] + len(calls)}, {}

    assert violation(testing.check_deterministic, step, BATCHES, state=STATE).difference
    assert calls == [], "the check left the closure changed"


def test_check_deterministic_finds_bits_that_depend_on_the_number_of_threads() -> None:
    def step(state: Any, batch: Any) -> Any:
        return {"w": (batch * torch.get_num_threads()).sin()}, {}

    testing.check_deterministic(step, BATCHES, state=STATE)
    found = violation(testing.check_deterministic, step, BATCHES, state=STATE, threads=(3,))
    assert found.summary.startswith("the outputs with 3 threads have other bits than with")
    assert found.operator == "aten.mul.Tensor"


# Law 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: {**s, "key": s["key"] + 1.0},
            r"state\['key'\] .* another dtype: expected int64",
        ),
        (
            lambda s: {**s, "w": torch.cat([s["w"], s["w"]])},
            r"another shape: expected \[8\], got \[16\]",
        ),
        (lambda s: {**s, "loss": s["w"]}, r"other leaves: new \['loss'\]"),
        (lambda s: {"w": s["w"]}, r"other leaves: missing \['key'\]"),
        (lambda s: {**s, "key": 4}, r"state\['key'\] .* another class: expected Tensor, got int"),
        (
            lambda s: {**s, "w": s["w"].requires_grad_() * 2},
            "requires_grad: expected False, got True",
        ),
    ],
)
def test_check_fixpoint_names_the_leaf_whose_layout_changes(
    change: Callable[[Any], Any], said: str
) -> None:
    found = violation(
        testing.check_fixpoint, lambda state, batch: (change(state), {}), BATCHES, state=STATE
    )
    with pytest.raises(AssertionError, match=said):
        raise found


def test_check_fixpoint_finds_transposed_strides() -> None:
    state = {"w": torch.zeros(3, 2)}
    found = violation(
        testing.check_fixpoint,
        lambda state, batch: ({"w": torch.zeros(2, 3).t()}, {}),
        [None],
        state=state,
    )
    assert "another strides: expected (2, 1), got (1, 3)" in found.summary


def test_check_fixpoint_finds_a_branch_on_a_value_and_shows_its_line() -> None:
    def step(state: Any, batch: Any) -> Any:
        if batch.mean().item() > 0:  # branches on a value
            return {**state, "w": state["w"] + 1}, {}
        return {**state, "w": state["w"] - 1}, {}

    found = violation(testing.check_fixpoint, step, BATCHES, state=STATE)
    assert line_with(__file__, "branches on a value") in str(found.line)
    assert "ftrain.cond" in str(found.remedy)
    testing.check_fixpoint(step, BATCHES, state=STATE, compiled=False)


# Law 4


class Noisy(nn.Module):
    """Network whose second layer draws."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_check_keyed_names_operator_module_and_line_of_an_unkeyed_dropout() -> None:
    model = Noisy()

    def step(state: Any, batch: Any) -> Any:
        with torch.no_grad():
            return {"w": model(batch)}, {}  # dropout without a key

    found = violation(testing.check_keyed, step, BATCHES, state=STATE)
    assert found.operator == "aten.native_dropout.default" or "bernoulli" in str(found.operator)
    assert "in module layers.1 (Dropout)" in str(found.line)
    assert HERE in str(found.line)
    assert "torch's global generator" in found.summary


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda: np.random.rand(8), "NumPy's global generator"),
        (lambda: random.random(), "the generator of Python's random functions"),
    ],
)
def test_check_keyed_names_the_line_that_draws_from_other_generators(
    draw: Callable[[], Any], name: str
) -> None:
    def step(state: Any, batch: Any) -> Any:
        return {**state, "w": state["w"] + torch.as_tensor(draw())}, {}

    before = np.random.get_state()[1].tolist(), random.getstate()
    found = violation(testing.check_keyed, step, BATCHES[:1], state=STATE)
    assert name in found.summary
    assert HERE in str(found.line)
    assert before == (np.random.get_state()[1].tolist(), random.getstate())


@pytest.mark.parametrize("kind", ["torch", "numpy", "python"])
def test_check_keyed_finds_generators_that_the_step_holds(kind: str) -> None:
    made: Any = {
        "torch": lambda: torch.Generator().manual_seed(0),
        "numpy": lambda: np.random.default_rng(0),
        "python": lambda: random.Random(0),
    }[kind]()

    def step(state: Any, batch: Any) -> Any:
        noise = {
            "torch": lambda: torch.randn(8, generator=made),
            "numpy": lambda: torch.from_numpy(made.standard_normal(8)),
            "python": lambda: torch.tensor(made.random()),
        }[kind]()
        return {**state, "w": (state["w"] + noise).float()}, {}

    found = violation(testing.check_keyed, step, BATCHES, state=STATE)
    assert "the generator `made`, which the function holds" in found.summary
    assert HERE in str(found.line)


def test_check_keyed_finds_a_key_that_is_used_and_not_replaced() -> None:
    key = ftrain.random.key(0)

    def step(state: Any, batch: Any) -> Any:
        noise = ftrain.random.normal(state["rng"], (8,))
        return {"w": state["w"] + noise, "rng": state["rng"].clone()}, {}

    found = violation(testing.check_keyed, step, BATCHES, state={"w": torch.zeros(8), "rng": key})
    assert "uses the key state['rng'] and returns it unchanged" in found.summary

    def replaces(state: Any, batch: Any) -> Any:
        new, use = ftrain.random.split(state["rng"]).unbind()
        noise = ftrain.random.normal(use, (8,))
        return {"w": state["w"] + noise, "rng": new}, {}

    report = testing.check_keyed(replaces, BATCHES, state={"w": torch.zeros(8), "rng": key})
    assert "changes with each step" in str(report)
