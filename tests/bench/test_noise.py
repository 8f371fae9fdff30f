"""Test the decision whether a difference of times is more than noise, on synthetic samples."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain.bench import Difference, compare_runs, compare_turns
from ftrain.bench.noise import RESOLUTION, median_interval

seconds = st.floats(1e-6, 10.0)
turns = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=40)


@given(turns)
def test_confidence_interval_contains_the_median_of_the_ratios(
    pairs: list[tuple[float, float]],
) -> None:
    found = compare_turns(*zip(*pairs, strict=True))
    assert found.low <= found.ratio * (1 + 1e-9)
    assert found.high >= found.ratio * (1 - 1e-9)


@given(turns)
def test_exchanging_the_contenders_inverts_the_ratio_of_their_times(
    pairs: list[tuple[float, float]],
) -> None:
    first, second = zip(*pairs, strict=True)
    forth, back = compare_turns(first, second), compare_turns(second, first).inverted()
    assert forth.ratio == pytest.approx(back.ratio)
    assert forth.low == pytest.approx(back.low)
    assert forth.high == pytest.approx(back.high)


@given(turns, st.lists(st.floats(0.1, 10.0), min_size=40, max_size=40))
def test_other_load_on_both_contenders_of_a_round_does_not_change_the_ratio_of_their_times(
    pairs: list[tuple[float, float]], load: list[float]
) -> None:
    quiet = compare_turns(*zip(*pairs, strict=True))
    busy = [(a * by, b * by) for (a, b), by in zip(pairs, load, strict=False)]
    found = compare_turns(*zip(*busy, strict=True))
    assert found.ratio == pytest.approx(quiet.ratio)
    assert found.low == pytest.approx(quiet.low)
    assert found.high == pytest.approx(quiet.high)


@given(st.lists(seconds, min_size=1, max_size=40))
def test_equal_times_are_never_reported_as_a_difference(times: list[float]) -> None:
    assert not compare_turns(times, times).is_real
    assert not compare_runs(times, times).is_real


@given(st.lists(seconds, min_size=1, max_size=7), st.floats(1.0, 100.0))
def test_times_of_fewer_than_eight_turns_are_never_reported_as_a_difference(
    times: list[float], by: float
) -> None:
    found = compare_turns([t * by for t in times], times)
    assert not found.is_real
    assert "too few turns" in str(found)


@given(st.lists(seconds, min_size=8, max_size=40), st.floats(1.02, 100.0))
def test_contender_slower_in_every_turn_is_reported_as_a_difference(
    times: list[float], by: float
) -> None:
    found = compare_turns([t * by for t in times], times)
    assert found.is_real
    assert found.inverted().is_real
    assert f"{by:.2f} times" in str(found)


@given(st.lists(seconds, min_size=8, max_size=40), st.floats(1.0, 1 + RESOLUTION / 2))
def test_differences_within_one_percent_are_not_reported_as_real(
    times: list[float], by: float
) -> None:
    assert not compare_turns([t * by for t in times], times).is_real


@given(st.lists(seconds, min_size=8, max_size=40))
def test_runs_are_reported_as_different_only_if_the_ranges_of_their_times_do_not_overlap(
    times: list[float],
) -> None:
    above = [max(times) * 1.02 / min(times) * t for t in times]
    assert compare_runs(above, times).is_real
    assert not compare_runs([*times, *above], [*above, *times]).is_real


def noisy(rng: random.Random, n: int, median: float = 1.0, noise: float = 0.2) -> list[float]:
    """Return times with skewed noise, of which one in ten is delayed by other load."""
    return [
        median * rng.lognormvariate(0, noise) * (3.0 if rng.random() < 0.1 else 1.0)
        for _ in range(n)
    ]


@pytest.mark.parametrize("compare", [compare_turns, compare_runs])
def test_noise_is_reported_as_a_difference_in_less_than_two_of_a_hundred_runs(
    compare: object,
) -> None:
    rng, trials = random.Random(0), 3000
    assert callable(compare)
    wrong = sum(compare(noisy(rng, 15), noisy(rng, 15)).is_real for _ in range(trials))
    assert wrong < 0.02 * trials  # 1 %, and four standard deviations of the count


def test_twice_the_time_is_reported_as_a_difference_in_nearly_every_run() -> None:
    rng, trials = random.Random(0), 1000
    pairs = ((noisy(rng, 21, 2.0, 0.1), noisy(rng, 21, 1.0, 0.1)) for _ in range(trials))
    assert sum(compare_turns(*pair).is_real for pair in pairs) > 0.95 * trials


def test_median_interval_contains_the_median_at_least_as_often_as_its_confidence_level() -> None:
    rng, trials, covered = random.Random(1), 4000, 0
    for _ in range(trials):
        low, high = median_interval([rng.random() for _ in range(11)], 0.9)
        covered += low <= 0.5 <= high
    # 0.935 by the binomial distribution of 11 values: the order statistics 3 and 9.
    assert covered / trials == pytest.approx(0.935, abs=0.02)


@given(st.lists(st.floats(-1e3, 1e3), min_size=8, max_size=60))
def test_median_interval_lies_within_the_values_and_around_their_median(
    values: list[float],
) -> None:
    low, high = median_interval(values)
    assert min(values) <= low <= statistics.median(values) <= high <= max(values)


def test_times_of_zero_are_compared_without_an_error() -> None:
    found = compare_turns([0.0] * 10, [1e-3] * 10)
    assert math.isfinite(found.ratio)
    assert isinstance(found, Difference)
