"""Test schedules against those of torch and optax, at every count of a run and past its end.

Tolerances: ftrain and optax compute the same formula in float64, with a few roundings: 1e-13. torch
updates its rate by a recurrence, so rounding errors accumulate: 1e-12, and 1e-9 where the recurrence
divides by `1 + cos`. After the end of a schedule, the rates of ftrain and optax stay constant, while
torch's change or raise.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from ftrain import optim
from tests.campaign import examples

peaks = st.floats(1e-6, 10)
lengths = st.integers(1, 60)
fractions = st.floats(0, 1)
jumps = st.just(0.0) | st.floats(1e-3, 2)  # JAX flushes subnormal rates to zero


def at(schedule, count: int) -> float:
    rate = schedule(torch.tensor(count))
    assert rate.dtype is torch.float64
    assert rate.shape == ()
    return rate.item()


def curve(schedule, steps: int) -> list[float]:
    return [at(schedule, t) for t in range(steps)]


def torch_rates(peak: float, make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], peak)
    scheduler = make(optimizer)
    rates = []
    for t in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        if t + 1 < steps:
            optimizer.step()
            scheduler.step()
    return rates


def optax_rates(make, steps: int) -> list[float]:
    with jax.enable_x64(True):
        return jax.vmap(make())(jnp.arange(128)).tolist()[
            :steps
        ]  # one shape: JAX compiles per shape


def close(expected, size, rel=1e-13):
    return pytest.approx(expected, rel=rel, abs=rel * size)


@given(peaks, lengths, fractions, fractions)
@settings(max_examples=examples(20, 30))
def test_linear_schedule_matches_torch_and_optax(peak, steps, start, end):
    start = max(start, 1e-3)
    schedule = optim.linear(start * peak, end * peak, steps)
    assert curve(schedule, steps + 3) == close(
        torch_rates(
            peak,
            lambda o: lr_scheduler.LinearLR(o, start, end_factor=end, total_iters=steps),
            steps + 3,
        ),
        peak,
        1e-12,
    )
    assert curve(schedule, steps + 3) == close(
        optax_rates(lambda: optax.linear_schedule(start * peak, end * peak, steps), steps + 3), peak
    )


@given(peaks, lengths, fractions)
@settings(max_examples=10)
def test_linear_warmup_schedule_equals_linear_schedule(peak, steps, start):
    one, other = optim.linear_warmup(peak, steps, start), optim.linear(start, peak, steps)
    assert curve(one, steps + 3) == curve(other, steps + 3)


@given(peaks, lengths, fractions, st.floats(0.1, 5))
@settings(max_examples=examples(20, 30))
def test_polynomial_schedule_matches_torch_and_optax(peak, steps, end, power):
    """Within 1e-10 near the end, where torch multiplies by powers of `1 - 1 / (steps - t)`."""
    assert curve(optim.polynomial(peak, end * peak, steps, power), steps + 3) == close(
        optax_rates(lambda: optax.polynomial_schedule(peak, end * peak, power, steps), steps + 3),
        peak,
        1e-12,
    )
    assert curve(optim.polynomial(peak, 0.0, steps, power), steps + 3) == close(
        torch_rates(peak, lambda o: lr_scheduler.PolynomialLR(o, steps, power), steps + 3),
        peak,
        1e-10,
    )


@given(peaks, lengths, st.floats(0.5, 1.05))
@settings(max_examples=examples(20, 30))
def test_exponential_schedule_matches_torch_and_optax(peak, steps, factor):
    assert curve(optim.exponential(peak, factor), 60) == close(
        torch_rates(peak, lambda o: lr_scheduler.ExponentialLR(o, factor), 60), 0, 1e-12
    )
    for end in (None, peak / 3, peak * 2):
        assert curve(optim.exponential(peak, factor, steps, end=end), 60) == close(
            optax_rates(
                lambda e=end: optax.exponential_decay(peak, steps, factor, end_value=e), 60
            ),
            0,
        )


@example(peak=1.0, steps=49, factor=0.5)
@given(peaks, lengths, st.floats(0.1, 1.5))
@settings(max_examples=examples(20, 30))
def test_step_schedule_matches_torch_and_optax(peak, steps, factor):
    schedule = optim.step(peak, steps, factor)
    assert curve(schedule, 60) == close(
        torch_rates(peak, lambda o: lr_scheduler.StepLR(o, steps, factor), 60), 0, 1e-12
    )
    # XLA multiplies by the reciprocal: where the count is a multiple of `steps`, optax may be one short.
    staircase = optax_rates(
        lambda: optax.exponential_decay(peak, steps, factor, staircase=True), 60
    )
    inside = [t for t in range(60) if t % steps or t == 0]
    assert [at(schedule, t) for t in inside] == close([staircase[t] for t in inside], 0)


@given(peaks, st.dictionaries(st.integers(1, 40), jumps, max_size=4), st.floats(0.1, 1.5))
@settings(max_examples=examples(20, 30))
def test_piecewise_constant_schedule_matches_torch_and_optax(peak, factors, gamma):
    assert curve(optim.piecewise_constant(peak, factors), 45) == close(
        optax_rates(lambda: optax.piecewise_constant_schedule(peak, factors), 45), 0
    )
    alike = optim.piecewise_constant(peak, dict.fromkeys(factors, gamma))
    assert curve(alike, 45) == close(
        torch_rates(peak, lambda o: lr_scheduler.MultiStepLR(o, list(factors), gamma), 45), 0, 1e-12
    )


@given(peaks, lengths, fractions)
@settings(max_examples=examples(20, 30))
def test_cosine_schedule_matches_torch_and_optax(peak, steps, end):
    schedule = optim.cosine(peak, steps, end=end * peak)
    assert curve(schedule, steps + 1) == close(
        torch_rates(
            peak, lambda o: lr_scheduler.CosineAnnealingLR(o, steps, end * peak), steps + 1
        ),
        peak,
        1e-9,
    )
    assert curve(schedule, steps + 3) == close(
        optax_rates(lambda: optax.cosine_decay_schedule(peak, steps, end), steps + 3), peak
    )
    assert at(schedule, 10 * steps) == at(schedule, steps) == pytest.approx(end * peak, abs=1e-17)


@given(peaks, st.integers(1, 20), fractions, st.integers(1, 4))
@settings(max_examples=examples(20, 30))
def test_cosine_restarts_schedule_matches_torch_and_optax(peak, steps, end, factor):
    schedule = optim.cosine_restarts(peak, steps, end * peak, factor=factor)
    assert curve(schedule, 100) == close(
        torch_rates(
            peak,
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, steps, factor, end * peak),
            100,
        ),
        peak,
    )
    spans, begin = [], 0
    while begin < 100:
        length = steps * factor ** len(spans)
        spans.append({"init_value": peak, "peak_value": peak, "warmup_steps": 0,
                      "decay_steps": length, "end_value": end * peak})  # fmt: skip
        begin += length
    assert curve(schedule, 100) == close(optax_rates(lambda: optax.sgdr_schedule(spans), 100), peak)


@given(st.integers(2, 7), st.integers(1, 1000), st.integers(0, 40))
def test_cosine_restarts_schedule_restarts_at_the_exact_update_also_at_large_counts(
    factor, steps, cycle
):
    """At the first and last update of a cycle a rounded logarithm gives the wrong cycle."""
    begin = steps * (factor**cycle - 1) // (factor - 1)
    if begin * factor > 2**52:  # more updates than a float64 can count
        return
    schedule = optim.cosine_restarts(1.0, steps, 0.25, factor=factor)
    assert at(schedule, begin) == 1.0
    if begin:
        last = (steps * factor ** (cycle - 1) - 1) / (steps * factor ** (cycle - 1))
        assert at(schedule, begin - 1) == close(0.625 + 0.375 * math.cos(math.pi * last), 1)


@given(peaks, st.integers(2, 60) | st.integers(2, 4), st.floats(0, 0.99), st.floats(1, 50),
       st.floats(1, 1e5), st.sampled_from(["cos", "linear"]))  # fmt: skip
@example(1.0, 3, 0.3, 25.0, 1e4, "cos")  # the peak is before the first update
@example(1.0, 3, 1 / 3, 25.0, 1e4, "cos")  # at it
@settings(max_examples=examples(20, 60))
def test_one_cycle_schedule_matches_torch(peak, steps, pct, div, final, anneal):
    schedule = optim.one_cycle(
        peak, steps, pct_start=pct, div_factor=div, final_div_factor=final, anneal_strategy=anneal
    )
    rates = curve(schedule, 2 * steps)
    assert rates[steps:] == close([peak / (div * final)] * steps, peak)

    def make(o):
        return lr_scheduler.OneCycleLR(
            o, peak, steps, pct_start=pct, div_factor=div, final_div_factor=final,
            anneal_strategy=anneal, cycle_momentum=False,
        )  # fmt: skip

    if pct * steps == 1:
        with pytest.raises(ZeroDivisionError):
            torch_rates(peak, make, steps)
        assert rates[0] == peak
    else:
        assert rates[:steps] == close(torch_rates(peak, make, steps), peak)


@given(peaks, st.integers(1, 30), lengths, st.floats(1, 50), st.floats(1, 1e5))
@settings(max_examples=examples(20, 30))
def test_one_cycle_schedule_matches_the_optax_schedule_with_one_step_less(
    peak, rise, fall, div, final
):
    steps = rise + fall
    ours = optim.one_cycle(peak, steps + 1, pct_start=(rise + 1) / (steps + 1), div_factor=div,
                           final_div_factor=final)  # fmt: skip
    expected = optax_rates(
        lambda: optax.cosine_onecycle_schedule(
            steps, peak, (rise + 1e-9) / steps, div_factor=div, final_div_factor=final
        ),
        steps + 5,
    )
    assert curve(ours, steps + 5) == close(expected, peak, 1e-12)


@given(peaks, st.integers(0, 30), lengths, fractions)
@settings(max_examples=examples(20, 30))
def test_warmup_cosine_schedule_matches_optax(peak, warmup, decay, end):
    total = warmup + decay
    schedule = optim.warmup_cosine(peak, warmup, total, end=end * peak)
    expected = optax_rates(
        lambda: optax.warmup_cosine_decay_schedule(0.0, peak, warmup, total, end * peak), total + 3
    )
    assert curve(schedule, total + 3) == close(expected, peak)


@given(peaks, st.integers(0, 30), lengths)
@settings(max_examples=examples(20, 30))
def test_warmup_linear_schedule_matches_the_linear_schedule_of_transformers(peak, warmup, decay):
    from transformers import get_linear_schedule_with_warmup

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup, warmup + decay)
    expected = []
    for _ in range(warmup + decay + 3):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = curve(optim.warmup_linear(peak, warmup, warmup + decay), warmup + decay + 3)
    assert ours == close(expected, peak)


@given(peaks, st.integers(0, 20), st.integers(0, 20), lengths, fractions)
@settings(max_examples=examples(20, 30))
def test_warmup_stable_decay_schedule_matches_optax_and_its_formula(
    peak, warmup, stable, decay, end
):
    total = warmup + stable + decay
    reference = lambda: optax.join_schedules(  # noqa: E731
        [optax.linear_schedule(0.0, peak, warmup), optax.constant_schedule(peak),
         optax.linear_schedule(peak, end * peak, decay)],
        [warmup, warmup + stable],
    )  # fmt: skip
    schedule = optim.warmup_stable_decay(peak, warmup, stable, decay, end * peak)
    assert curve(schedule, total + 3) == close(optax_rates(reference, total + 3), peak)
    rooted = optim.warmup_stable_decay(peak, warmup, stable, decay, end * peak, shape="sqrt")
    part = [min(max(t - warmup - stable, 0) / decay, 1) for t in range(total + 3)]
    expected = [peak * min(1, t / warmup if warmup else 1) for t in range(total + 3)]
    expected = [e - peak * (1 - end) * math.sqrt(x) for e, x in zip(expected, part, strict=True)]
    assert curve(rooted, total + 3) == close(expected, peak)


@given(peaks, st.integers(1, 40), fractions)
@settings(max_examples=examples(20, 30))
def test_inverse_sqrt_schedule_matches_its_formula(peak, warmup, start):
    """Neither torch nor optax has this schedule; the reference is the formula in Python floats."""
    found = curve(optim.inverse_sqrt(peak, warmup, start * peak), 4 * warmup)
    expected = [
        peak * math.sqrt(warmup / t) if t >= warmup
        else peak * (start + (1 - start) * t / warmup)
        for t in range(4 * warmup)
    ]  # fmt: skip
    assert found == close(expected, peak)


@given(peaks, st.lists(st.integers(1, 20), min_size=1, max_size=3))
@settings(max_examples=20)
def test_joined_schedules_match_torch_and_optax(peak, lengths):
    boundaries = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    number = len(boundaries) + 1
    ours = [optim.linear(peak / 8, peak, 5), optim.exponential(peak, 0.9), optim.cosine(peak, 40),
            optim.constant(peak)]  # fmt: skip
    optaxs = [optax.linear_schedule(peak / 8, peak, 5), optax.exponential_decay(peak, 1, 0.9),
              optax.cosine_decay_schedule(peak, 40), optax.constant_schedule(peak)]  # fmt: skip
    found = curve(optim.join(ours[:number], boundaries), boundaries[-1] + 10)
    assert found == close(
        optax_rates(lambda: optax.join_schedules(optaxs[:number], boundaries), len(found)), peak
    )

    def sequential(o):
        each = [lr_scheduler.LinearLR(o, 1 / 8, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9),
                lr_scheduler.CosineAnnealingLR(o, 40), lr_scheduler.ConstantLR(o, 1.0)]  # fmt: skip
        return lr_scheduler.SequentialLR(o, each[:number], boundaries)

    assert found == close(torch_rates(peak, sequential, len(found)), peak, 1e-9)


@given(peaks, st.integers(1, 30), lengths, fractions)
def test_warmup_cosine_schedule_reaches_peak_and_end_rate_at_its_boundaries(
    peak, warmup, decay, end
):
    end *= peak
    schedule = optim.warmup_cosine(peak, warmup, warmup + decay, end=end)
    rates = curve(schedule, warmup + decay + 5)
    assert rates[0] == 0
    assert rates[warmup] == pytest.approx(peak, rel=1e-15)
    assert rates[warmup + decay :] == pytest.approx([end] * 5, rel=1e-15, abs=1e-17 * peak)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
