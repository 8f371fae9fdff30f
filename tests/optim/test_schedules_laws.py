"""Test properties of every schedule: any kind of count, sweeps, hypergradients, compilation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import ftrain
from ftrain import optim
from ftrain.core import tree


def at(schedule, count: int) -> float:
    return schedule(torch.tensor(count)).item()


EVERY = {
    "constant": lambda p: optim.constant(p),
    "linear": lambda p: optim.linear(p / 2, p, 5),
    "linear_warmup": lambda p: optim.linear_warmup(p, 5),
    "polynomial": lambda p: optim.polynomial(p, p / 8, 5, power=p + 1),
    "exponential": lambda p: optim.exponential(p, 1 - p / 20, 3, end=p / 2),
    "step": lambda p: optim.step(p, 4, factor=p / 20),
    "piecewise_constant": lambda p: optim.piecewise_constant(p, {3: 0.5, 7: p / 20}),
    "cosine": lambda p: optim.cosine(p, 5, end=p / 4),
    "cosine_restarts": lambda p: optim.cosine_restarts(p, 4, p / 8),
    "growing restarts": lambda p: optim.cosine_restarts(p, 4, factor=2),
    "one_cycle": lambda p: optim.one_cycle(p, 12),
    "warmup_cosine": lambda p: optim.warmup_cosine(p, 5, 10, end=p / 4),
    "warmup_linear": lambda p: optim.warmup_linear(p, 5, 10, end=p / 4),
    "warmup_stable_decay": lambda p: optim.warmup_stable_decay(p, 3, 4, 5, shape="sqrt"),
    "inverse_sqrt": lambda p: optim.inverse_sqrt(p, 5),
    "join": lambda p: optim.join([optim.linear_warmup(p, 3), optim.exponential(p, 0.5)], [3]),
}
every_schedule = pytest.mark.parametrize("name", EVERY)


@every_schedule
def test_schedules_can_be_vmapped_traced_and_compiled_over_the_count(name):
    """The graph holds no tensor constants, and one compiled program serves every count."""
    schedule, counts = EVERY[name](0.5), torch.arange(20)
    mapped = torch.vmap(schedule)(counts)
    graph = make_fx(schedule, tracing_mode="fake")(counts[0])
    assert not [n for n in graph.graph.nodes if n.op == "get_attr"]
    compiled = ftrain.compile(lambda count: schedule(count), backend="eager")
    for count, rate in zip(counts, mapped, strict=True):
        assert rate == schedule(count) == graph(count) == compiled(count)
    assert compiled.n_compiles == 1


@every_schedule
@given(values=st.lists(st.floats(0.1, 2), min_size=2, max_size=4), count=st.integers(0, 30))
@settings(max_examples=5)
def test_schedules_vmapped_over_hyperparameters_match_separate_calls(name, values, count):
    """For tensors of any floating-point dtype."""
    for dtype in (torch.float32, torch.float64):
        rates = torch.tensor(values, dtype=dtype)
        mapped = torch.vmap(lambda p: EVERY[name](p)(torch.tensor(count)))(rates)
        assert mapped.dtype is torch.float64
        alone = [at(EVERY[name](float(p)), count) for p in rates]
        # A schedule that is given p / 8 as a float32 tensor computes with that rounding of it.
        rel = 1e-14 if dtype is torch.float64 else 1e-6
        assert mapped.tolist() == pytest.approx(alone, rel=rel, abs=rel)


@every_schedule
def test_derivatives_of_schedules_for_their_hyperparameters_are_finite_at_every_count(name):
    """Branches that `where` discards may overflow or divide by zero without a NaN gradient."""
    for count in [*range(16), 10**7]:
        peak = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        rate = EVERY[name](peak)(torch.tensor(count))
        (gradient,) = torch.autograd.grad(rate, peak)
        assert rate.isfinite()
        assert gradient.isfinite(), count


@every_schedule
def test_schedules_are_finite_at_a_count_of_2_to_the_40(name):
    assert math.isfinite(at(EVERY[name](0.5), 2**40))


def test_constant_schedule_returns_the_same_rate_at_any_count():
    assert {at(optim.constant(0.1), t) for t in (0, 1, 10**12)} == {0.1}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_schedules_count_applied_updates_not_micro_batches_or_skipped_steps(accumulate):
    """Neither a micro-batch nor a skipped step advances a schedule."""
    schedule = optim.warmup_stable_decay(1e-2, 2, 2, 3)
    init_state, train_step, _ = ftrain.make_steps(
        lambda: torch.nn.Linear(3, 1),
        lambda model, x: model(x).square().mean(),
        optim.adamw(schedule),
        accumulate=accumulate,
    )
    state, rates = init_state(0), []
    for index in range(9):
        bad = torch.full((4, 3), math.nan) if index == 4 else torch.ones(4, 3)
        state, metrics = train_step(state, bad)
        rates.append(metrics["learning_rate"].item())
    applied = [0, 1, 2, 3, 3, 4, 5, 6, 7]  # at index 4 the rate of the update before it stays
    expected = [schedule(torch.tensor(t)).float().item() for t in applied]
    assert rates == expected


def test_sgd_accepts_any_function_of_the_count_as_schedule():
    params = {"w": torch.ones(2)}
    optimizer = optim.sgd(lambda count: 1 / (1.0 + count))
    state = optimizer.init(params)
    for expected in (1, 1 / 2, 1 / 3):
        updates, state = optimizer.update(params, state, params)
        assert math.isclose(state.learning_rate.item(), expected, rel_tol=1e-7)
        torch.testing.assert_close(updates["w"], torch.full((2,), -float(expected)))


def test_compiled_schedule_equals_eager_at_every_update():
    """Bit for bit, from one compiled program."""
    schedule = optim.join(
        [optim.linear_warmup(0.1, 3), optim.cosine_restarts(0.1, 2, factor=3)], [3]
    )
    optimizer = optim.sgd(schedule)
    params = {"w": torch.ones(3)}
    update = ftrain.compile(lambda g, s: optimizer.update(g, s), backend="eager")
    eager = compiled = optimizer.init(params)
    for _ in range(15):
        _, eager = optimizer.update(params, eager)
        _, compiled = update(params, compiled)
        assert tree.digest(eager) == tree.digest(compiled)
    assert update.n_compiles == 1


@every_schedule
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_rates_without_grad_mode_equal_those_with_it(name, mode):
    """`join` computes only the running schedule where no graph is kept."""
    schedule = EVERY[name](torch.tensor(0.5, dtype=torch.float64))
    for count in range(20):
        expected = schedule(torch.tensor(count))
        with mode():
            rate = schedule(torch.tensor(count))
        assert (rate.dtype, rate.item()) == (expected.dtype, expected.item())


def test_update_calls_only_the_running_one_of_joined_schedules():
    called = []
    parts = [lambda count, i=i: called.append((i, int(count))) or 0.1 * (i + 1) for i in range(3)]
    schedule = optim.join(parts, [2, 3])
    with torch.no_grad():
        rates = [at(schedule, count) for count in range(5)]
    assert called == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.3])


def test_joined_schedules_are_called_only_with_counts_within_their_spans():
    seen: dict[str, set[int]] = {"a": set(), "b": set(), "c": set()}

    def spy(name):
        def schedule(count):
            seen[name].add(int(count))
            return 0.1

        return schedule

    joined = optim.join([spy("a"), spy("b"), spy("c")], [3, 5])
    assert {at(joined, t) for t in range(9)} == {0.1}
    assert seen == {"a": {0, 1, 2, 3}, "b": {0, 1, 2}, "c": {0, 1, 2, 3}}
