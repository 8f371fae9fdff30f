"""Bounds of integers, clipped as numbers and as tensors."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from ftrain.core.random import _integers

BOUNDS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.builds(
        lambda sign, power, more: max(-(2**63), min(2**63 - 1, sign * 2**power + more)),
        st.sampled_from([-1, 1]),
        st.sampled_from([0, 7, 8, 15, 16, 31, 32, 63]),
        st.integers(-1, 1),
    ),
)


@pytest.mark.parametrize("dtype", list(_integers.RANGE), ids=str)
@given(low=BOUNDS, high=BOUNDS)
def test_bounds_clipped_as_numbers_equal_those_clipped_as_tensors(
    dtype: torch.dtype, low: int, high: int
) -> None:
    numbers = _integers.clipped(low, high, dtype)
    given_as = ((torch.tensor(low), high), (low, torch.tensor(high)))
    for bounds in given_as:
        tensors = _integers.clipped_tensors(*bounds, dtype, torch.device("cpu"))
        assert numbers == tuple(int(x) for x in tensors)


@pytest.mark.parametrize("dtype", list(_integers.RANGE), ids=str)
def test_clipped_integer_range_is_given_as_its_first_value_and_its_number_of_values(
    dtype: torch.dtype,
) -> None:
    lowest, highest = _integers.RANGE[dtype]
    bits = max(32, _integers.WIDTH[dtype])
    assert _integers.clipped(3, 7, dtype) == (3, 4)
    assert _integers.clipped(3, 3, dtype) == (3, 1)  # an empty range counts as one value
    assert _integers.clipped(3, highest, dtype)[1] % 2**bits == highest - 3
    start, span = _integers.clipped(lowest, highest + 1, dtype)
    assert start % 2**64 == lowest % 2**64
    assert span % 2**bits == (highest - lowest + 1) % 2**bits


WORDS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.builds(
        lambda power, more: (2**power + more) % 2**64,
        st.sampled_from([0, 1, 31, 32, 62, 63, 64]),
        st.integers(-3, 3),
    ),
)


def stored(word: int) -> torch.Tensor:
    """Return an unsigned 64-bit integer as int64 of the same bits."""
    return torch.tensor([(word + 2**63) % 2**64 - 2**63])


@given(a=WORDS, n=WORDS)
def test_remainder_of_unsigned_64_bit_integers_is_exact(a: int, n: int) -> None:
    found = int(_integers._remainder64(stored(a), stored(n))) % 2**64
    assert found == a % (n or 2**64)


@pytest.mark.parametrize("dtype", list(_integers.RANGE), ids=str)
@given(low=BOUNDS, high=BOUNDS, upper=WORDS, lower=WORDS)
def test_integer_from_two_random_words_is_the_remainder_that_jax_computes(
    dtype: torch.dtype, low: int, high: int, upper: int, lower: int
) -> None:
    """JAX multiplies in words of n bits, which wrap around for spans above 2^(n / 2)."""
    bits = max(32, _integers.WIDTH[dtype])
    upper, lower = upper % 2**bits, lower % 2**bits
    words = [stored(word) for word in (upper, lower)]
    if bits == 32:
        words = [word.to(torch.int32) for word in words]
    base, span = (torch.tensor([x]) for x in _integers.clipped(low, high, dtype))
    found = _integers.between(*words, base, span, dtype)
    size = int(span) % 2**bits or 2**bits
    factor = (2 ** (bits // 2) % size) ** 2 % 2**bits % size
    offset = (upper % size * factor + lower % size) % 2**bits % size
    assert found.dtype == dtype
    assert (int(found) - int(base) - offset) % 2 ** _integers.WIDTH[dtype] == 0
