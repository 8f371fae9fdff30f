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
