"""Test that the shuffle is a bijection for every length, is well mixed, and never changes."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain.data import Shuffled
from ftrain.data._hash import uniform, words
from ftrain.data._permutation import permuted
from tests.campaign import CAMPAIGN, choice

LENGTHS = st.integers(1, 10**9)
SEEDS = st.integers(-(2**63), 2**64 - 1)


def order(n, seed=0, epoch=0):
    return Shuffled(n).at(np.arange(n), seed=seed, epoch=epoch)


def assert_uniform(counts, sigmas=4.0):
    """Raise unless Pearson's statistic is within `sigmas` deviations of that of a fair draw.

    The chi-squared law of k degrees of freedom has mean k and variance 2 k. The seeds are fixed, so this
    passes or fails for good; 4 deviations leave one in 10^4 to chance for each use.
    """
    counts = np.asarray(counts, dtype=np.float64).ravel()
    expected = counts.mean()
    assert expected >= 10, "too few draws for the approximation"
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    assert abs(statistic - freedom) < sigmas * math.sqrt(2 * freedom), (statistic, freedom)


def test_shuffle_is_a_bijection_for_every_length_up_to_4096():
    for n in range(1, 4097):
        assert np.bincount(order(n, seed=n), minlength=n).max() == 1, n


# A float32 holds no odd number above 2**24.
FEW_POWERS = [*range(13, 21), 24]


@pytest.mark.parametrize("power", choice(FEW_POWERS, range(13, 25)))
def test_shuffle_is_a_bijection_for_lengths_around_powers_of_two(power):
    lengths = [2**power + 1] if power == 24 and not CAMPAIGN else [2**power + i for i in (-1, 0, 1)]
    for n in lengths:
        seen = np.zeros(n, dtype=bool)
        keys = words("shuffled", power, 0)
        for start in range(0, n, 1 << 18):
            seen[permuted(np.arange(start, min(start + (1 << 18), n)), n, keys)] = True
        assert seen.all(), n


@given(n=LENGTHS, seed=SEEDS, data=st.data())
def test_shuffle_maps_distinct_positions_to_distinct_samples(n, seed, data):
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=50, unique=True))
    found = Shuffled(n).at(np.array(chosen), seed=seed, epoch=data.draw(st.integers(0, 2**40)))
    assert len(set(found.tolist())) == len(chosen)
    assert 0 <= found.min() <= found.max() < n


@given(n=st.integers(1, 3000), seed=SEEDS, data=st.data())
def test_shuffled_sample_of_a_position_does_not_depend_on_other_queried_positions(n, seed, data):
    whole = order(n, seed)
    chosen = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    assert (Shuffled(n).at(chosen, seed=seed, epoch=0) == whole[chosen]).all()
    assert (Shuffled(n).at(chosen[:, None], seed=seed, epoch=0) == whole[chosen][:, None]).all()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_permutations_of_few_samples_are_equally_frequent(n):
    permutations = {p: i for i, p in enumerate(itertools.permutations(range(n)))}
    counts = np.zeros(len(permutations))
    for epoch in range(20 * len(permutations)):
        counts[permutations[tuple(order(n, seed=1, epoch=epoch).tolist())]] += 1
    assert_uniform(counts)


def test_shuffle_gives_even_and_odd_permutations_equally_often():
    """Also if n is the square of an odd number, where each round could be an even permutation."""

    def even(p):
        cycles, seen = 0, [False] * len(p)
        for start in range(len(p)):
            cycles, here = cycles + (not seen[start]), start
            while not seen[here]:
                seen[here] = True
                here = p[here]
        return (len(p) - cycles) % 2 == 0

    for n in (9, 81**2):
        found = sum(even(order(n, seed=seed).tolist()) for seed in range(100))
        assert 20 < found < 80  # 6 deviations of a fair coin


@pytest.mark.parametrize("n", [4096, 4097, 5000])
def test_shuffle_maps_positions_that_share_their_high_or_low_bits_to_unrelated_samples(n):
    """Too few rounds show first at positions (l, r), (l, r'), (l', r), (l', r')."""
    a = math.isqrt(n - 1) + 1
    b = -(-n // a) + -(-n // a) % 2
    rng = np.random.default_rng(0)
    counts = np.zeros(64)
    for epoch in range(500):
        l0, l1 = rng.integers(0, a - 1, (2, 500))
        r0, r1 = rng.integers(0, b, (2, 500))
        places = np.stack([l0 * b + r0, l0 * b + r1, l1 * b + r0, l1 * b + r1])
        places = places[:, (places < n).all(0) & (l0 != l1) & (r0 != r1)]
        w, x, y, z = Shuffled(n).at(places, seed=0, epoch=epoch)
        counts += np.bincount((w - x - y + z) % n * 64 // n, minlength=64)
    assert_uniform(counts)


@pytest.mark.parametrize("n", [10, 100, 1797, 65_537])
def test_every_sample_is_equally_likely_at_every_position(n):
    """Counts of positions against samples, in ten bins each, over many epochs."""
    epochs = max(20, 20_000 // n)
    counts = np.zeros((10, 10))
    position_bins = np.arange(n) * 10 // n
    for epoch in range(epochs):
        np.add.at(counts, (position_bins, order(n, epoch=epoch) * 10 // n), 1)
    if n % 10:  # bins of unequal size: divide by what chance gives
        sizes = np.bincount(position_bins, minlength=10)
        expected = np.outer(sizes, sizes) / n * epochs
        counts = counts / expected * expected.mean()
    # Rows and columns are fixed sums: 81 degrees of freedom, not 99, so less deviation than assumed.
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert abs(statistic - 81 * n / (n - 1)) < 4 * math.sqrt(2 * 81)


@pytest.mark.parametrize("n", [1797, 10**6, 10**9])
def test_shuffled_orders_of_adjacent_epochs_and_seeds_are_unrelated(n):
    shuffled, places = Shuffled(n), np.arange(min(n, 40_000))
    here = shuffled.at(places, seed=0, epoch=0)
    for other in (
        np.roll(here, 1),  # the sample before
        shuffled.at(places, seed=0, epoch=1),
        shuffled.at(places, seed=1, epoch=0),
        shuffled.at(places, seed=2**32, epoch=0),  # beyond the words that torch's generator keeps
        places,
    ):
        distance = (here - other) % n
        bins = 32 if n > 10_000 else 16
        counts = np.bincount(distance * bins // n, minlength=bins)
        assert_uniform(counts)


def test_every_pair_of_seed_and_epoch_gives_a_different_order():
    orders = {
        tuple(order(20, seed, epoch).tolist()) for seed in range(-8, 8) for epoch in range(16)
    }
    assert len(orders) == 256


def test_shuffling_a_billion_samples_uses_constant_memory():
    tracemalloc.start()
    found = Shuffled(10**9).at(np.arange(10**9 - 256, 10**9), seed=0, epoch=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(found)) == 256
    assert peak < 100_000


def test_hashed_uniform_numbers_are_uniform():
    drawn = uniform(np.arange(100_000), words("weighted", 0, 0))
    assert 0 <= drawn.min() < drawn.max() < 1
    assert_uniform(np.bincount((drawn * 100).astype(int), minlength=100))
    low = (drawn * 2.0**53).astype(np.int64) & 63  # the last bits too
    assert_uniform(np.bincount(low, minlength=64))


def test_shuffle_order_matches_stored_values():
    """Stored cursors rely on the order, so a change requires a new ORDER in `cursor.py`."""
    assert order(10).tolist() == GOLDEN_10
    places = np.array([0, 1, 123_456_789, 999_999_999])
    assert Shuffled(10**9).at(places, seed=-5, epoch=3).tolist() == GOLDEN_BILLION
    assert words("augment", 7, 1)[:2].tolist() == GOLDEN_WORDS


GOLDEN_10 = [5, 9, 6, 8, 7, 4, 0, 1, 2, 3]
GOLDEN_BILLION = [582907005, 938308354, 848493355, 106887584]
GOLDEN_WORDS = [3334743299, 657624503]
