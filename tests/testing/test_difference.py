"""Test `first_difference`, which compares bytes and structure, and the distance of values in ulps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftrain import testing
from ftrain.testing.difference import ulps

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@given(
    value=st.floats(
        width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**99), max_value=2.0**99
    ),
    steps=st.integers(0, 40),
)
def test_ulps_count_the_floats_between_two_values(value: float, steps: int) -> None:
    other = np.float32(value)
    for _ in range(steps):
        other = np.nextafter(other, np.float32(np.inf))
    a, b = torch.tensor(np.float32(value)), torch.tensor(other)
    # Two zeros lie at one place: a path through zero has a step less for them.
    crosses = value < 0 <= float(other) or (
        value == 0 and math.copysign(1, value) < 0 and steps > 0
    )
    assert ulps(a, b) in ({steps, steps - 1} if crosses else {steps})
    assert ulps(b, a) == ulps(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ulps_is_1_for_neighbours_0_for_both_zeros_and_none_for_nan(dtype: torch.dtype) -> None:
    one = torch.tensor(1.0, dtype=dtype)
    assert ulps(one, one + torch.finfo(dtype).eps) == 1
    assert ulps(torch.tensor(0.0, dtype=dtype), torch.tensor(-0.0, dtype=dtype)) == 0
    assert ulps(one, torch.tensor(math.nan, dtype=dtype)) is None
    assert ulps(torch.tensor(1), torch.tensor(2)) is None


def test_difference_names_path_index_values_count_and_ulps() -> None:
    expected = {"a": torch.zeros(2), "b": [torch.ones(2, 3)]}
    got = {"a": torch.zeros(2), "b": [torch.ones(2, 3)]}
    got["b"][0][1, 1:] = 1.0000001
    difference = testing.first_difference(got, expected)
    assert difference is not None
    assert (difference.path, difference.index) == ("['b'][0]", (1, 1))
    assert (difference.got, difference.expected) == (1.00000011920928955078125, 1.0)
    assert (difference.ulps, difference.count, difference.total) == (1, 2, 6)
    assert str(difference) == (
        "['b'][0] at (1, 1): expected 1.0, got 1.00000012 (1 ulp; 2 of 6 elements differ)"
    )


@pytest.mark.parametrize(
    ("got", "expected", "text"),
    [
        (torch.tensor(0.0), torch.tensor(-0.0), "the tree at (): expected -0.0, got 0.0 (0 ulps;"),
        (torch.zeros(2), torch.zeros(3), "the tree: expected shape [3], got [2]"),
        (torch.zeros(2), torch.zeros(2).double(), "expected dtype float64, got float32"),
        ({"a": 1}, {"a": 2}, "['a']: expected 2, got 1"),
        ({"a": 1}, {"a": 1.0}, "['a']: expected 1.0, got 1"),
        ((1, 2), (1, 2, 3), "at the root: expected a tuple of 3 entries, got 2"),
        ({"a": 1}, {"b": 1}, "at the root: expected an entry ['b'], got none"),
        ({"a": 1, "b": 1}, {"a": 1}, "at the root: expected no such entry, got an entry ['b']"),
        (
            {"a": [1]},
            {"a": (1,)},
            "at ['a']: expected a tuple of 1 entries, got a list of 1 entries",
        ),
        (
            torch.tensor([1, 2]),
            torch.tensor([1, 3]),
            "(1,): expected 3, got 2 (1 of 2 elements differ)",
        ),
        (torch.tensor([True]), torch.tensor([False]), "expected False, got True"),
        (torch.tensor(1 + 2j), torch.tensor(1 + 3j), "expected (1+3j), got (1+2j)"),
    ],
)
def test_difference_is_printed_as_path_expected_and_got(got: Any, expected: Any, text: str) -> None:
    assert text in str(testing.first_difference(got, expected))
    assert testing.first_difference(expected, expected) is None


def test_equal_trees_have_no_difference_whatever_their_layout_and_nans() -> None:
    nan = torch.tensor([math.nan, -0.0])
    assert testing.first_difference({"x": nan}, {"x": nan.clone()}) is None
    wide = torch.arange(6.0).view(2, 3)
    assert testing.first_difference(wide.t().contiguous().t(), wide) is None
    assert testing.first_difference(torch.zeros(0, 3), torch.zeros(0, 3)) is None
    other = torch.tensor([math.nan]).view(torch.int32) + 1
    assert testing.first_difference(other.view(torch.float32), torch.tensor([math.nan])) is not None
    assert testing.first_difference(np.arange(3), np.arange(3)) is None
    assert testing.first_difference(np.arange(3), np.arange(3) + 1) is not None
