"""Poisson sampling: each example enters independently, in a fixed number of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import random, transforms
from tests.campaign import examples
from tests.compile.cases import same_bytes


@settings(deadline=None, max_examples=examples(20, 50))
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0, 1), st.data())
def test_poisson_samples_hold_distinct_examples_in_order(
    seed: int, count: int, rate: float, data: st.DataObject
) -> None:
    capacity = data.draw(st.integers(1, count))
    sample = transforms.poisson_sample(random.key(seed), count, rate, capacity)
    whole = transforms.poisson_sample(random.key(seed), count, rate, count)
    held = sample.indices[sample.mask]
    assert sample.indices.shape == sample.mask.shape == (capacity,)
    assert bool((held.diff() > 0).all())
    assert same_bytes(held, whole.indices[whole.mask][:capacity])
    assert len(held) + int(sample.dropped) == int(whole.mask.sum())
    assert bool((sample.indices[~sample.mask] == 0).all())
    assert bool((held < count).all())


def test_poisson_samples_hold_every_example_at_rate_1_and_none_at_rate_0() -> None:
    assert bool(transforms.poisson_sample(random.key(0), 9, 1.0, 9).mask.all())
    assert not bool(transforms.poisson_sample(random.key(0), 9, 0.0, 9).mask.any())


def test_examples_enter_a_poisson_sample_independently_with_the_sample_rate() -> None:
    """Compare frequencies and the variance of the size over 4,000 batches, within 5 standard errors."""
    draw = lambda key: transforms.poisson_sample(key, 20, 0.3, 20)  # noqa: E731
    sample = torch.vmap(draw)(random.split(random.key(1), 4000))
    entered = torch.zeros(4000, 20).scatter_add_(1, sample.indices, sample.mask.float())
    assert bool(((entered.mean(0) - 0.3).abs() < 5 * (0.21 / 4000) ** 0.5).all())
    sizes = sample.mask.sum(1).double()
    assert abs(float(sizes.var()) / (20 * 0.21) - 1) < 5 * (2 / 4000) ** 0.5


def test_compiled_poisson_samples_equal_eager_samples() -> None:
    draw = lambda key: transforms.poisson_sample(key, 50, 0.2, 20)  # noqa: E731
    ours, expected = ftrain.compile(draw, backend="eager")(random.key(3)), draw(random.key(3))
    for a, b in zip(ours, expected, strict=True):
        assert same_bytes(a, b)


def test_poisson_sample_refuses_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="sample_rate"):
        transforms.poisson_sample(random.key(0), 9, 1.5, 3)
    with pytest.raises(ValueError, match="capacity: expected 1 to 9"):
        transforms.poisson_sample(random.key(0), 9, 0.5, 10)
