"""Test samplers other than the plain shuffle: their guarantees and their errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftrain.data import ByLength, Mixed, Sampler, Sequential, Shuffled, Weighted
from tests.data.test_permutation import assert_uniform

SAMPLERS = {
    "sequential": Sequential(137),
    "shuffled": Shuffled(137),
    "weighted": Weighted(np.arange(137) % 5, samples=200),
    "by length": ByLength(np.arange(137) % 11, group=8, window=4),
    "mixed": Mixed([37, 100], weights=[0.2, 0.8], samples=300),
}


def whole(sampler, seed=0, epoch=0):
    return sampler.at(np.arange(len(sampler)), seed=seed, epoch=epoch)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample_of_a_position_does_not_depend_on_other_queried_positions(name):
    sampler = SAMPLERS[name]
    assert isinstance(sampler, Sampler)
    for seed, epoch in ((0, 0), (0, 1), (-3, 2)):
        expected = whole(sampler, seed, epoch)
        one_by_one = [
            int(sampler.at(np.array([p]), seed=seed, epoch=epoch)[0]) for p in range(len(sampler))
        ]
        assert one_by_one == expected.tolist()
        backwards = sampler.at(np.arange(len(sampler))[::-1].reshape(-1, 1), seed=seed, epoch=epoch)
        assert (backwards[::-1, 0] == expected).all()


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "sequential"])
def test_samplers_return_different_orders_for_seeds_and_epochs(name):
    sampler = SAMPLERS[name]
    orders = {tuple(whole(sampler, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@given(
    weights=st.lists(st.floats(0, 1e300), min_size=1, max_size=30).filter(any),
    seed=st.integers(0, 99),
)
def test_weighted_sampler_never_draws_samples_of_weight_zero(weights, seed):
    drawn = whole(Weighted(weights, samples=100), seed)
    assert all(weights[index] > 0 for index in drawn)


def test_weighted_sampler_draws_samples_in_proportion_to_their_weights():
    weights = np.array([0.0, 1, 2, 3, 4])
    counts = np.bincount(whole(Weighted(weights, samples=100_000)), minlength=5)
    assert counts[0] == 0
    assert_uniform(counts[1:] / weights[1:] * weights.mean())


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=300),
    group=st.integers(1, 20),
    window=st.integers(1, 9),
)
def test_by_length_sampler_visits_each_sample_once(lengths, group, window):
    found = whole(ByLength(lengths, group, window))
    assert sorted(found.tolist()) == list(range(len(lengths)))


def test_by_length_sampler_reduces_padding():
    lengths = np.random.default_rng(0).integers(1, 1000, 6400)

    def padding(order):
        batches = lengths[order].reshape(-1, 32)
        return 1 - batches.sum() / (batches.max(1) * 32).sum()

    # Uniform lengths: nearly half of a random batch is padding; a window of 64 batches leaves under 2 %.
    assert padding(whole(Shuffled(6400))) > 0.45
    assert padding(whole(ByLength(lengths, 32))) < 0.02


def test_by_length_sampler_shuffles_groups_of_similar_length():
    lengths = np.arange(64 * 32)
    first = [lengths[whole(ByLength(lengths, 32), epoch=e)][:32].mean() for e in range(200)]
    assert_uniform(np.bincount((np.array(first) / 2048 * 8).astype(int), minlength=8))


def test_mixed_sampler_keeps_its_proportions_in_every_block():
    drawn = whole(Mixed([1000, 1000, 1000], weights=[0.7, 0.2, 0.1], samples=102_400)) // 1000
    for stretch in drawn.reshape(-1, 1024):
        assert np.bincount(stretch).tolist() == [717, 205, 102]


def test_mixed_sampler_draws_every_sample_of_a_source_before_repeating_one():
    mixed = Mixed([300, 5000], weights=[0.5, 0.5], samples=1536)
    drawn = np.concatenate([whole(mixed, epoch=e) for e in range(8)])  # 12 whole blocks
    small = drawn[drawn < 300]
    assert np.ptp(np.bincount(small)) == 1  # 6,144 draws are 20.48 passes
    large = np.bincount(drawn[drawn >= 300] - 300, minlength=5000)
    assert large.min() == 1  # over several epochs of the mixture
    assert large.max() == 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Shuffled(0), "from 1 to 2"),
        (lambda: Shuffled(2**32 + 1), "from 1 to 2"),
        (lambda: Shuffled(3.0), "got 3.0"),
        (lambda: Weighted([1.0, -2.0]), r"weights\[1\]: expected a finite number >= 0, got -2.0"),
        (lambda: Weighted([float("nan")]), r"weights\[0\]: expected a finite number >= 0, got nan"),
        (lambda: Weighted([0.0, 0.0]), "got zeros only"),
        (lambda: Weighted([]), "got shape"),
        (lambda: ByLength([[1]], 2), "one number for each sample"),
        (lambda: ByLength([1, 2], 0), "group: expected an integer >= 1"),
        (
            lambda: Mixed([1, 2], weights=[1.0]),
            "weights: expected 2 numbers, one for each source, got 1",
        ),
        (lambda: Mixed([5, 5], weights=[1.0, 1e-9]), "would never be drawn"),
    ],
)
def test_samplers_refuse_invalid_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
