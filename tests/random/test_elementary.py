"""Test the elementary functions of the samplers against arithmetic of 40 digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from ftrain.core.random import _elementary, _rejection

INF, NAN = math.inf, math.nan
F64 = torch.float64
TINY = torch.finfo(F64).tiny


def grid(low: float, high: float, count: int = 400) -> Tensor:
    return torch.linspace(low, high, count, dtype=F64)


def exact(function: Callable[[Any], Any], x: Tensor) -> list[Any]:
    with mpmath.workdps(40):
        return [function(mpmath.mpf(value)) for value in x.tolist()]


def worst(found: Tensor, wanted: list[Any], units: Tensor | None = None) -> float:
    """Return the largest error, in units in the last place of the results or in `units`."""
    steps = np.spacing(np.abs(found.numpy())) if units is None else units.numpy()
    with mpmath.workdps(40):
        errors = [abs(mpmath.mpf(a) - b) for a, b in zip(found.tolist(), wanted, strict=True)]
    return max(float(error) / step for error, step in zip(errors, steps, strict=True))


# Bounds: twice the errors seen. log1p is off by 129 units at the lower end of its rational part, as in
# XLA (`_normal.py`).
@pytest.mark.parametrize(
    ("name", "x", "bound"),
    [
        ("exp", torch.cat([grid(-708, 709.7), grid(-1, 1)]), 2),
        ("log", torch.cat([torch.logspace(-300, 300, 400, dtype=F64), grid(0.5, 2)]), 2),
        ("log1p", torch.cat([grid(-0.999, -1e-3), -torch.logspace(-300, -3, 300, dtype=F64)]), 130),
        ("erf", torch.cat([grid(-6, 6), torch.logspace(-300, -1, 300, dtype=F64)]), 3),
    ],
)
def test_elementary_functions_are_right_to_a_few_units_in_the_last_place(
    name: str, x: Tensor, bound: float
) -> None:
    found = getattr(_elementary, name)(x)
    assert worst(found, exact(getattr(mpmath, name), x)) <= bound


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("exp", [0.0, -708.1, 709.8, INF, -INF, NAN], [1.0, 0.0, INF, INF, 0.0, NAN]),
        ("log", [1.0, 0.0, INF, NAN], [0.0, -INF, INF, NAN]),
        ("log1p", [0.0, -1.0], [0.0, -INF]),
        ("erf", [0.0, 7.0, -7.0, INF, -INF, 6.0], [0.0, 1.0, -1.0, 1.0, -1.0, 1.0]),
    ],
)
def test_elementary_functions_return_their_limits_at_edge_values(
    name: str, values: list[float], wanted: list[float]
) -> None:
    found = getattr(_elementary, name)(torch.tensor(values, dtype=F64))
    torch.testing.assert_close(
        found, torch.tensor(wanted, dtype=F64), rtol=0, atol=0, equal_nan=True
    )


def test_exponential_is_finite_and_positive_up_to_its_limits() -> None:
    found = _elementary.exp(torch.tensor([-708.0, 709.7], dtype=F64))
    torch.testing.assert_close(found, torch.tensor([math.exp(-708.0), math.exp(709.7)], dtype=F64))


@pytest.mark.parametrize("name", ["exp", "erf"])
def test_elementary_functions_of_dtypes_other_than_float64_equal_those_of_torch(name: str) -> None:
    x = torch.linspace(-3, 3, 50)
    assert torch.equal(getattr(_elementary, name)(x), getattr(torch, name)(x))


def test_power_of_a_tensor_equals_the_power_of_each_element() -> None:
    x, exponent = torch.tensor([0.25, 2.0, 9.0], dtype=F64), torch.tensor([0.5, 3.0, -1.0])
    wanted = torch.tensor([0.5, 8.0, 1 / 9], dtype=F64)
    torch.testing.assert_close(_elementary.power(x, exponent.double()), wanted, rtol=1e-15, atol=0)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8, 33])
def test_sums_over_rows_of_a_matrix_have_the_bits_of_each_row_summed_alone(length: int) -> None:
    x = torch.rand(4, length, dtype=F64)
    for function, wanted in (
        (_elementary.total, x.sum(-1)),
        (_elementary.cumulative, x.cumsum(-1)),
    ):
        found = function(x)
        # At most 33 roundings of sums below 33.
        torch.testing.assert_close(found, wanted, rtol=0, atol=33 * 33 * 2**-53)
        assert torch.equal(found[2], function(x[2]))


def test_total_of_a_tensor_is_summed_in_pairs_of_elements() -> None:
    x = torch.tensor([1.0, 2.0**-53, -1.0, 2.0**-53], dtype=F64)
    assert float(_elementary.total(x)) == 2.0**-52  # in the order of the elements: 2^-53


@pytest.mark.parametrize("rate", [10.0, 40.0, 1e3, 1e5, 1e8, 1e10])
def test_logarithm_of_a_poisson_probability_is_right_to_1e_10(rate: float) -> None:
    """The first omitted term of Stirling's series, 1 / (1680 k^7), is below 6e-11."""
    spread = torch.linspace(-3, 6, 100, dtype=F64) * math.sqrt(rate)
    k = (rate + spread).round().clamp_min(0)
    found = _rejection._log_poisson(k, torch.full_like(k, rate))
    with mpmath.workdps(40):
        wanted = [n * mpmath.log(rate) - rate - mpmath.loggamma(n + 1) for n in k.tolist()]
    assert worst(found, wanted, torch.ones_like(k)) <= 1e-10


@pytest.mark.parametrize(("count", "prob"), [(40, 0.3), (1000, 0.5), (100_000, 0.01)])
def test_logarithm_of_a_ratio_of_binomial_probabilities_is_right_to_1e_8(
    count: int, prob: float
) -> None:
    """The series of four factorials are off by 1e-9 each at most.

    `test_remainder_of_stirlings_formula_matches_lgamma` checks this bound.
    """
    spread = torch.linspace(-4, 6, 60, dtype=F64) * math.sqrt(count * prob * (1 - prob))
    k = (count * prob + spread).round().clamp(0, count)
    found = _rejection._log_binomial(k, torch.full_like(k, count), torch.full_like(k, prob))
    with mpmath.workdps(40):
        odds = mpmath.mpf(prob) / (1 - mpmath.mpf(prob))
        mode = math.floor((count + 1) * prob)

        def log_choose(m: float) -> Any:
            return -mpmath.loggamma(m + 1) - mpmath.loggamma(count - m + 1)

        wanted = [
            log_choose(m) - log_choose(mode) + (m - mode) * mpmath.log(odds) for m in k.tolist()
        ]
    assert worst(found, wanted, torch.ones_like(k)) <= 1e-8
