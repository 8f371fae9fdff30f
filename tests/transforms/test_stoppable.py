"""Steps that freeze diverged and pruned members, and leave the others as they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import optim, testing, transforms
from ftrain.loop import Trainer
from tests.transforms.cases import batches, line_batch, line_steps, steps, traced


def without_flag(state: ftrain.TrainState) -> ftrain.TrainState:
    extras = {name: x for name, x in state.extras.items() if name != "active"}
    return state.replace(extras=extras)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_steps_of_an_active_state_have_the_bits_of_plain_training_steps(
    precision: str, mode: str
) -> None:
    base = steps("convnet", precision)
    stopping = transforms.stoppable(base)
    state, plain = stopping.init_state(0), base.init_state(0)
    step, one = traced(stopping.train_step, mode), traced(base.train_step, mode)
    for batch in batches("convnet", 3):
        state, metrics = step(state, batch)
        plain, plain_metrics = one(plain, batch)
        testing.assert_same_bits(without_flag(state), plain)
        testing.assert_same_bits(
            {n: metrics.entries[n] for n in plain_metrics}, plain_metrics.entries
        )
    assert bool(state.extras["active"])


@settings(max_examples=10)
@given(keep=st.lists(st.booleans(), min_size=4, max_size=4), at=st.integers(0, 3))
def test_members_of_a_sweep_freeze_independently(keep: list[bool], at: int) -> None:
    swept = transforms.sweep(transforms.stoppable(steps("mlp")), 4)
    states, free = swept.init_state(0), swept.init_state(0)
    kept = states
    for k, batch in enumerate(batches("mlp", 4)):
        if k == at:
            states = kept = transforms.deactivate(states, torch.tensor(keep))
        states, metrics = swept.train_step(states, batch)
        free, _ = swept.train_step(free, batch)
    assert metrics["active"].tolist() == keep
    assert metrics["skipped"].tolist() == [not each for each in keep]
    for i, is_kept in enumerate(keep):
        expected = transforms.member(free if is_kept else kept, i)
        testing.assert_same_bits(transforms.member(states, i), expected)


def test_a_diverged_member_freezes_before_the_step_that_diverged() -> None:
    base = line_steps(optim.with_hyperparams(optim.sgd, learning_rate=0.1))
    stopping = transforms.stoppable(base, lambda metrics: metrics["loss"] > 1e3)
    swept = transforms.sweep(stopping, over={"learning_rate": [0.1, 30.0]})
    step = ftrain.compile(swept.train_step, backend="eager")
    states, last = swept.init_state(0), None
    for k in range(12):
        states, metrics = step(states, line_batch(k % 2))
        if last is None and metrics["active"].tolist() == [1.0, 0.0]:
            last = transforms.member(states, 1)
    assert last is not None
    testing.assert_same_bits(transforms.member(states, 1), last)
    assert states.step[0] == 12
    assert float(base.eval_step(last, line_batch(0))["loss"]) > 1e3
    assert torch.isfinite(states.params["weight"]).all()


def test_trainer_keeps_frozen_members_of_a_sweep_unchanged() -> None:
    swept = transforms.sweep(transforms.stoppable(line_steps()), 3)
    states = transforms.deactivate(swept.init_state(0), torch.tensor([True, False, True]))
    data = [line_batch(i) for i in range(4)]
    found = Trainer(swept, compile=False).fit(states, data, epochs=2)
    assert found.status == "completed"
    assert found.state.step.tolist() == [8, 0, 8]
    assert found.train is not None
    assert found.train.members["active"] == (1.0, 0.0, 1.0)


def refused(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_stoppable_refuses_invalid_states_functions_and_masks() -> None:
    base = line_steps()
    stopping = transforms.stoppable(base)
    batch = line_batch(0)
    refused(
        lambda: stopping.train_step(base.init_state(0), batch),
        "expected an entry 'active', got none",
    )
    refused(lambda: transforms.stoppable(stopping).init_state(0), "expected no entry 'active'")
    unsure = transforms.stoppable(base, lambda metrics: metrics["loss"])
    refused(
        lambda: unsure.train_step(unsure.init_state(0), batch),
        "diverged: expected a function that returns a bool 0-d tensor",
    )
    refused(
        lambda: transforms.deactivate(stopping.init_state(0), torch.ones(2, dtype=torch.bool)),
        r"keep: expected bool\[\]",
    )
    with pytest.raises(TypeError, match="compile last"):
        transforms.stoppable(base._replace(train_step=ftrain.compile(base.train_step)))


values_of = st.lists(
    st.one_of(st.floats(-5, 5, width=32), st.sampled_from([float("nan"), float("inf")])),
    min_size=1,
    max_size=9,
)


@given(
    values=values_of,
    keep=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    mode=st.sampled_from(["min", "max"]),
    data=st.data(),
)
def test_successive_halving_keeps_the_best_part_of_the_active_members(
    values: list[float], keep: float, mode: Any, data: Any
) -> None:
    """Compare with sorting in Python."""
    n = len(values)
    active = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    sign = 1 if mode == "min" else -1
    taking = [i for i in range(n) if active[i]]
    taking.sort(key=lambda i: (True, 0.0) if math.isnan(values[i]) else (False, sign * values[i]))
    count = max(1, -int(-len(taking) * keep // 1))
    mask = transforms.successive_halving(
        torch.tensor(values), keep, mode, active=torch.tensor(active)
    )
    assert [i for i in range(n) if mask[i]] == sorted(taking[:count])
    traced_mask = ftrain.compile(
        lambda v, a: transforms.successive_halving(v, keep, mode, active=a), backend="eager"
    )(torch.tensor(values), torch.tensor(active))
    testing.assert_same_bits(traced_mask, mask)


def test_successive_halving_that_keeps_a_tenth_of_30_members_keeps_3() -> None:
    """0.1 * 30 is 3.0000000000000004."""
    assert transforms.successive_halving(torch.arange(30.0), 0.1).sum() == 3


def test_successive_halving_refuses_invalid_fractions_and_shapes() -> None:
    values = torch.arange(4.0)
    refused(
        lambda: transforms.successive_halving(values, 0.0), r"keep: expected a fraction in \(0, 1\]"
    )
    refused(lambda: transforms.successive_halving(values[None]), r"shape \(n,\)")
    refused(lambda: transforms.successive_halving(values, mode="low"), "mode: expected")  # type: ignore[arg-type]
    refused(
        lambda: transforms.successive_halving(values, active=torch.ones(3, dtype=torch.bool)),
        r"active: expected bool\[4\]",
    )


def test_a_halved_sweep_continues_with_the_best_members() -> None:
    swept = transforms.sweep(line_steps(), over={"learning_rate": [1e-4, 1e-3, 1e-2, 0.1]})
    states = swept.init_state(0)
    while states.step.shape[0] > 1:
        for k in range(8):
            states, _ = swept.train_step(states, line_batch(k))
        losses = swept.eval_step(states, line_batch(9))["loss"]
        states = transforms.select(states, transforms.successive_halving(losses))
    assert states.step.tolist() == [16]
    assert float(optim.get(states.opt_state, "hyperparams")["learning_rate"][0]) == 0.1
