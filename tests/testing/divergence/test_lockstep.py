"""Test the first divergence of two variants of a step in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import ftrain
from ftrain import optim
from ftrain.testing import compare_traces, first_divergence, record
from tests.testing.divergence.variants import batches, steps

Tree = Any


def test_equal_variants_do_not_diverge_and_keep_their_inputs() -> None:
    variant = steps()
    state = variant.init_state(0)
    before = ftrain.tree.digest(state)
    donated = ftrain.compile(variant.train_step, donate=True, backend="eager")
    assert first_divergence(variant, donated, state, batches()[:3]) is None
    assert ftrain.tree.digest(state) == before


def test_one_ulp_in_a_leaf_is_reported_with_index_and_distance() -> None:
    def step(state: Tree, batch: Tree) -> Tree:
        return {"w": state["w"] + batch, "n": state["n"] + 1}, {}

    def other(state: Tree, batch: Tree) -> Tree:
        new, metrics = step(state, batch)
        if int(state["n"]) == 2:
            new["w"].numpy().view("int32")[1, 2] += 1
        return new, metrics

    state = {"w": torch.ones(2, 3), "n": torch.tensor(0)}
    found = first_divergence(step, other, state, [torch.full((2, 3), 0.5)] * 5)
    assert found is not None
    assert (found.step, found.kind, found.where, found.ulps) == (3, "state", "['w']", 1)
    assert found.a.startswith("2.5 at (1, 2)")
    assert found.b.endswith("1 of 6 elements differ")


def test_divergence_of_an_operator_with_different_arguments_shows_both_arguments() -> None:
    def step(state: Tree, batch: Tree) -> Tree:
        return state - torch.clamp(batch, max=1.0).mul(0.5), {}

    def other(state: Tree, batch: Tree) -> Tree:
        return state - torch.clamp(batch, max=2.0).mul(0.5), {}

    found = first_divergence(step, other, torch.zeros(2), [torch.ones(2), torch.tensor([0.0, 3.0])])
    assert found is not None
    assert (found.step, found.where) == (2, "aten.clamp.default")
    assert found.cause == "its arguments differ: (_, None, 1.0) in A, (_, None, 2.0) in B"
    assert found.a.startswith("1.0 at (1,)")
    assert found.b.startswith("2.0 at (1,)")
    assert found.ulps == 2**23


def test_recorded_inputs_of_an_in_place_operator_are_those_before_the_write() -> None:
    def step(state: Tree, batch: Tree) -> Tree:
        return (state * batch).add_(1.0), {}

    def other(state: Tree, batch: Tree) -> Tree:
        return (state * batch).add_(2.0), {}

    found = first_divergence(step, other, torch.ones(2), [torch.ones(2)])
    assert found is not None
    assert found.where == "aten.add_.Tensor"
    assert found.cause == "its arguments differ: (_, 1.0) in A, (_, 2.0) in B"


def test_backward_operator_has_the_line_of_the_forward_operator_that_it_differentiates() -> None:
    def loss_fn(model: nn.Module, batch: torch.Tensor) -> Tree:
        out = model(batch).exp()
        largest = out.detach().amax()
        return out.sum(), {"largest": largest}

    made = ftrain.make_steps(nn.Linear(2, 2), loss_fn, optim.sgd(0.1))
    trace = record(made, made.init_state(0), [torch.ones(1, 2)])
    lines = {
        each.name: each.place.line for each in trace.steps[0].operators or () if each.place.backward
    }
    assert lines["aten.mul.Tensor"].endswith("out = model(batch).exp()")


def test_operators_of_a_recomputed_region_have_the_locations_of_the_first_run() -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(lambda x: self.inner(x).exp(), x, use_reentrant=False)

    made = ftrain.make_steps(Region, lambda m, b: m(b).sum(), optim.sgd(0.1))
    trace = record(made, made.init_state(0), [torch.ones(1, 2)])
    places = [
        each.place for each in trace.steps[0].operators or () if each.name == "aten.addmm.default"
    ]
    assert len(places) == 2
    assert places[0] == places[1]
    assert (places[0].module, places[0].backward) == ("Region.inner", False)


def test_backward_operator_has_the_location_of_its_forward_operator() -> None:
    eager = record(steps().train_step, steps().init_state(0), batches()[:1])
    compiled = record(
        ftrain.compile(steps().train_step, backend="eager"), steps().init_state(0), batches()[:1]
    )
    for trace in (eager, compiled):
        (tanh,) = [
            each
            for each in trace.steps[0].operators or ()
            if each.name == "aten.tanh_backward.default"
        ]
        assert tanh.place.backward
        assert tanh.place.module == "Net"
        assert tanh.place.line.endswith("in forward: h = self.norm(h).tanh()")


def test_divergence_notes_different_operator_sequences_for_different_micro_batches() -> None:
    one, two = (steps(accumulate=k) for k in (1, 2))
    found = first_divergence(one, two, one.init_state(0), batches()[:1])
    assert found is not None
    assert any("the sequences of operators differ" in note for note in found.notes)


def test_divergence_by_a_changed_key_is_located_at_the_operator_that_changes_it() -> None:
    variant = steps()
    state = variant.init_state(0)

    def other(state: Tree, batch: Tree) -> Tree:
        return variant.train_step(state.replace(rng=state.rng + 1), batch)

    found = first_divergence(variant, other, state, batches()[:1])
    assert found is not None
    assert found.where == "aten.add.Tensor"
    assert "in other: return" in found.place


def test_lockstep_report_notes_a_nondeterministic_step() -> None:
    calls = []

    def step(state: Tree, batch: Tree) -> Tree:
        calls.append(1)
        return state + batch * len(calls), {}

    found = first_divergence(step, step, torch.zeros(2), [torch.ones(2)])
    assert found is not None
    assert "running step 1 again gave other bits, so the step is not deterministic" in str(found)


def test_step_with_a_missing_metric_is_reported() -> None:
    def step(state: Tree, batch: Tree) -> Tree:
        return state + batch, {"loss": batch.sum(), "size": batch.max()}

    def other(state: Tree, batch: Tree) -> Tree:
        return state + batch, {"loss": batch.sum()}

    found = first_divergence(step, other, torch.zeros(2), [torch.ones(2)])
    assert found is not None
    assert (found.kind, found.where) == ("operator", "aten.max.default")


def test_step_of_torch_compile_is_recorded_through_its_python_function() -> None:
    def step(state: Tree, batch: Tree) -> Tree:
        return state - 0.1 * batch, {}

    compiled = torch.compile(step, backend="eager")
    trace = record(compiled, torch.zeros(2), [torch.ones(2)])
    assert [each.name for each in trace.steps[0].operators or ()] == [
        "aten.mul.Tensor",
        "aten.sub.Tensor",
    ]
    assert compare_traces(trace, record(step, torch.zeros(2), [torch.ones(2)])) is None


def test_compiled_step_is_compared_with_the_current_value_of_a_captured_tensor() -> None:
    scale = torch.tensor([2.0, 3.0])

    def step(state: Tree, batch: Tree) -> Tree:
        return state - scale * batch, {}

    compiled = ftrain.compile(step, backend="eager")
    assert first_divergence(step, compiled, torch.zeros(2), [torch.ones(2)] * 2) is None
    scale.mul_(2)
    assert first_divergence(step, compiled, torch.zeros(2), [torch.ones(2)] * 2) is None


def test_compiled_code_that_sums_in_another_order_is_located_at_its_operator() -> None:
    def step(state: Tree, batch: Tree) -> Tree:
        return state + batch.tanh().sum(), {}

    generator = torch.Generator().manual_seed(0)
    data = torch.randn(1000, 37, generator=generator)
    found = first_divergence(step, ftrain.compile(step), torch.zeros(()), [data])
    if found is None:
        pytest.skip(
            "on this processor the machine code of the sum has the bits of the eager kernel"
        )
    assert "the operators give equal results when they run one by one" in found.cause
    assert any("machine code of B: aten." in note for note in found.notes)


def test_module_with_two_names_is_located_by_the_first_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.again = self.inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(self.inner(x))

    made = ftrain.make_steps(Twice, lambda m, b: m(b).sum(), optim.sgd(0.1))
    trace = record(made, made.init_state(0), [torch.ones(1, 2)])
    modules = {each.place.module for each in trace.steps[0].operators or ()}
    assert "Twice.inner" in modules


@pytest.mark.parametrize("bad", [nn.Linear(2, 2), 3])
def test_argument_that_is_not_a_step_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"b: expected a step .* got (Linear|int)\. Pass"):
        first_divergence(lambda s, b: (s, {}), bad, torch.zeros(1), [])


def test_step_that_does_not_return_a_pair_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a function that returns"):
        record(lambda state, batch: state, torch.zeros(1), [torch.ones(1)])


def test_traces_without_a_common_step_are_refused() -> None:
    def step(state: Tree, batch: Tree) -> Tree:
        return state + batch, {}

    one = record(step, torch.zeros(1), [torch.ones(1)])
    two = record(step, torch.zeros(1), [torch.ones(1)], first_step=5)
    with pytest.raises(ValueError, match=r"a common step, got steps \[1\] and \[5\]"):
        compare_traces(one, two)


def test_trace_that_begins_later_is_compared_with_the_state_before_its_first_step() -> None:
    def step(state: Tree, batch: Tree) -> Tree:
        return state + batch, {}

    data = [torch.ones(2) * i for i in range(4)]
    whole = record(step, torch.zeros(2), data)
    middle = torch.ones(2)
    assert compare_traces(whole, record(step, middle, data[2:], first_step=3)) is None
    found = compare_traces(whole, record(step, middle + 1, data[2:], first_step=3))
    assert found is not None
    assert (found.step, found.kind) == (2, "initial state")
    assert str(found).startswith("first difference: before step 3, initial state")
