"""`scan(train_step, k)` has the bits of k calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import testing, transforms, tree
from ftrain.core.errors import NonFiniteError
from tests.transforms.cases import Line, batches, line_batch, line_steps, squares, steps, traced


def assert_equals_calls(train_step: Any, state: Any, data: list[Any], mode: str) -> Any:
    """Compare a traced or eager scan with calls of the step in the same mode; return its state."""
    one, found = traced(train_step, mode), []
    scanned = traced(transforms.scan(train_step, len(data)), mode)
    after, metrics = scanned(state, transforms.stack(data))
    for batch in data:
        state, each = one(state, batch)
        found.append(each)
    testing.assert_same_bits(after, state)
    testing.assert_same_bits(metrics, transforms.stack(found))
    return after


@settings(max_examples=20)
@given(
    model=st.sampled_from(["mlp", "convnet", "gpt"]),
    precision=st.sampled_from(["32-true", "bf16-mixed", "16-mixed"]),
    accumulate=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**40),
    k=st.integers(1, 4),
)
def test_scanned_steps_have_the_bits_of_single_calls(
    model: str, precision: str, accumulate: int, seed: int, k: int
) -> None:
    each = steps(model, precision, accumulate)
    assert_equals_calls(each.train_step, each.init_state(seed), batches(model, k), "eager")


@pytest.mark.parametrize(("model", "precision"), [("mlp", "16-mixed"), ("convnet", "32-true")])
def test_a_traced_scan_has_the_bits_of_traced_single_calls(model: str, precision: str) -> None:
    """The second batch is not finite: its step is skipped inside the loop."""
    each, data = steps(model, precision), batches(model, 3)
    data[1] = {**data[1], "x": torch.full_like(data[1]["x"], float("nan"))}
    state = assert_equals_calls(each.train_step, each.init_state(0), data, "compiled")
    assert int(state.step) == 2


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_scan_of_a_sweep_takes_k_steps_of_all_members(mode: str) -> None:
    swept = transforms.sweep(transforms.stoppable(line_steps()), 3)
    data = [line_batch(i) for i in range(2)]
    assert_equals_calls(swept.train_step, swept.init_state(0), data, mode)


def test_sweep_of_scanned_steps_equals_scan_of_a_sweep() -> None:
    base, data = line_steps(), transforms.stack([line_batch(i) for i in range(2)])
    outer = transforms.scan(transforms.sweep(base, 3).train_step, 2)
    inner = base._replace(train_step=transforms.scan(base.train_step, 2))
    swept = transforms.sweep(inner, 3)
    state, metrics = outer(swept.init_state(0), data)
    expected, expected_metrics = swept.train_step(swept.init_state(0), data)
    testing.assert_same_bits(state, expected)
    swapped = tree.map(lambda x: x.transpose(0, 1), expected_metrics)
    testing.assert_same_bits(metrics, swapped)


def test_a_donated_scan_reuses_memory_and_compiles_once() -> None:
    each = steps("mlp")
    step = ftrain.compile(transforms.scan(each.train_step, 2), donate=True, backend="eager")
    plain = transforms.scan(each.train_step, 2)
    state, kept, data = each.init_state(0), each.init_state(0), batches("mlp", 4)
    places = [leaf.data_ptr() for leaf in tree.leaves(state)]
    for pair in (data[:2], data[2:]):
        state, metrics = step(state, transforms.stack(pair))
        kept, kept_metrics = plain(kept, transforms.stack(pair))
        testing.assert_same_bits(state, kept)
        testing.assert_same_bits(metrics, kept_metrics)
    assert step.n_compiles == 1
    assert places == [leaf.data_ptr() for leaf in tree.leaves(state)]


def test_scan_of_steps_with_nonfinite_raise_raises_for_a_non_finite_gradient() -> None:
    each = ftrain.make_steps(Line, squares, ftrain.optim.sgd(0.1), nonfinite="raise")
    data = [line_batch(0), {**line_batch(1), "y": torch.full((4,), float("nan"))}]
    with pytest.raises(NonFiniteError):
        transforms.scan(each.train_step, 2)(each.init_state(0), transforms.stack(data))


def test_scan_refuses_wrong_lengths_and_compiled_steps() -> None:
    each = line_steps()
    step = transforms.scan(each.train_step, 3)
    data = transforms.stack([line_batch(0), line_batch(1)])
    with pytest.raises(ValueError, match="leading axis of length k = 3, got 2"):
        step(each.init_state(0), data)
    with pytest.raises(ValueError, match="k: expected an integer of at least 1, got 0"):
        transforms.scan(each.train_step, 0)
    with pytest.raises(TypeError, match="compile last"):
        transforms.scan(ftrain.compile(each.train_step), 2)
    with pytest.raises(ValueError, match="batches: expected the same number of batches"):
        step(each.init_state(0), {"x": data["x"], "y": data["y"][:1]})
