"""Schedules against torch's schedulers and optax, at every count of a run and past its end."""

from __future__ import annotations

import math

import jax
import optax
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import lr_scheduler

from ftrain import optim

peaks = st.floats(1e-6, 10)
lengths = st.integers(1, 60)


def at(schedule, count: int) -> float:
    rate = schedule(torch.tensor(count))
    assert rate.dtype is torch.float64
    assert rate.shape == ()
    return rate.item()


def torch_rates(peak: float, make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], peak)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@given(peaks, lengths, st.floats(0, 1))
def test_linear_warmup_is_linear_lr(peak, steps, start):
    """torch multiplies its rate up step by step, so rounding adds up: 1e-12 over 60 steps."""
    start = max(start, 1e-3)
    expected = torch_rates(
        peak, lambda o: lr_scheduler.LinearLR(o, start_factor=start, total_iters=steps), steps + 3
    )
    schedule = optim.linear_warmup(peak, steps, start=start * peak)
    assert [at(schedule, t) for t in range(steps + 3)] == pytest.approx(expected, rel=1e-12)


@given(peaks, lengths, st.floats(0, 1))
def test_cosine_is_cosine_annealing(peak, steps, end):
    """torch's recurrence divides by `1 + cos`, which loses digits near the end: 1e-9 of the peak."""
    expected = torch_rates(
        peak, lambda o: lr_scheduler.CosineAnnealingLR(o, steps, end * peak), steps + 1
    )
    schedule = optim.cosine(peak, steps, end=end * peak)
    found = [at(schedule, t) for t in range(steps + 1)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9 * peak)
    assert at(schedule, 10 * steps) == at(schedule, steps) == pytest.approx(end * peak, abs=1e-17)


@given(peaks, st.integers(0, 30), lengths, st.floats(0, 1))
def test_warmup_cosine_is_optax_s(peak, warmup, decay, end):
    """In float64 on both sides: a few roundings, 1e-14."""
    total = warmup + decay
    schedule = optim.warmup_cosine(peak, warmup, total, end=end * peak)
    with jax.enable_x64(True):
        reference = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total, end * peak)
        expected = [float(reference(t)) for t in range(total + 3)]
    found = [at(schedule, t) for t in range(total + 3)]
    assert found == pytest.approx(expected, rel=1e-14, abs=1e-16 * peak)


@given(peaks, st.integers(1, 30), lengths, st.floats(0, 1))
def test_the_joints_are_exact(peak, warmup, decay, end):
    end *= peak
    schedule = optim.warmup_cosine(peak, warmup, warmup + decay, end=end)
    rates = [at(schedule, t) for t in range(warmup + decay + 5)]
    assert rates[0] == 0
    assert rates[warmup] == pytest.approx(peak, rel=1e-15)
    assert rates[warmup + decay :] == pytest.approx([end] * 5, rel=1e-15, abs=1e-17 * peak)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_constant_is_constant():
    assert {at(optim.constant(0.1), t) for t in (0, 1, 10**12)} == {0.1}


@pytest.mark.parametrize(
    "schedule",
    [
        optim.constant(0.1),
        optim.linear_warmup(0.1, 5),
        optim.cosine(0.1, 5),
        optim.warmup_cosine(0.1, 5, 10, end=0.01),
    ],
)
def test_schedules_vmap_and_trace(schedule):
    counts = torch.arange(20)
    mapped = torch.vmap(schedule)(counts)
    graph = make_fx(schedule, tracing_mode="fake")(counts[0])
    for count, rate in zip(counts, mapped, strict=True):
        assert rate == schedule(count) == graph(count)


def test_peaks_may_be_tensors():
    peaks = torch.tensor([0.1, 1.0], dtype=torch.float64)
    rates = torch.vmap(lambda peak: optim.warmup_cosine(peak, 2, 6)(torch.tensor(3)))(peaks)
    assert rates.tolist() == [at(optim.warmup_cosine(p, 2, 6), 3) for p in peaks.tolist()]


def test_any_function_of_the_count_is_a_schedule():
    params = {"w": torch.ones(2)}
    optimizer = optim.sgd(lambda count: 1 / (1.0 + count))
    state = optimizer.init(params)
    for expected in (1, 1 / 2, 1 / 3):
        updates, state = optimizer.update(params, state, params)
        assert math.isclose(state.learning_rate.item(), expected, rel_tol=1e-7)
        torch.testing.assert_close(updates["w"], torch.full((2,), -float(expected)))
