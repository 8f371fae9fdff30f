"""Arithmetic without rounding errors, compared with fractions."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

import torch

from ftrain.core.random import _floats


def _numbers(seed: int, count: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pairs of either sign with 53 random bits; some are close, some are far apart."""
    draw = Random(seed)
    pairs = [
        [
            draw.choice([-1, 1]) * math.ldexp(draw.getrandbits(53), draw.randint(-60, 0))
            for _ in "ab"
        ]
        for _ in range(count)
    ]
    whole = [[1.0, 2.0], [-1.0, 1.0], [0.0, -3.0], [3.0, 3.0]]  # exact sums, and one that is 0
    return tuple(torch.tensor(pairs + whole, dtype=torch.float64).unbind(-1))


def test_rounded_sum_plus_its_error_is_the_exact_sum() -> None:
    a, b = _numbers(0)
    for x, y, total, error in zip(a, b, *_floats._two_sum(a, b), strict=True):
        assert Fraction(x.item()) + Fraction(y.item()) == sum(
            map(Fraction, (total.item(), error.item()))
        )


def test_rounded_product_plus_its_error_is_the_exact_product() -> None:
    a, b = _numbers(1)
    for x, y, product, error in zip(a, b, *_floats._two_product(a, b), strict=True):
        exact = Fraction(x.item()) * Fraction(y.item())
        assert exact == Fraction(product.item()) + Fraction(error.item())
        assert product == x * y


def test_sum_rounded_to_odd_is_exact_or_the_odd_neighbour() -> None:
    a, b = _numbers(2)
    for x, y, rounded in zip(a, b, _floats._sum_to_odd(a, b), strict=True):
        exact, got = Fraction(x.item()) + Fraction(y.item()), rounded.item()
        if Fraction((x + y).item()) == exact:
            assert got == exact
            continue
        assert rounded.view(torch.int64).item() & 1
        away = math.nextafter(got, math.inf if exact > got else -math.inf)
        assert min(got, away) < exact < max(got, away)


def test_fused_multiply_add_of_float64_is_rounded_once() -> None:
    (a, b), (c, _) = _numbers(3), _numbers(4)
    c = torch.where(torch.arange(len(c)) % 2 == 0, c, -a * b + c)  # half of them cancel the product
    for x, y, z, got in zip(a, b, c, _floats._fma(a, b, c), strict=True):
        exact = Fraction(x.item()) * Fraction(y.item()) + Fraction(z.item())
        assert got.item() == exact.numerator / exact.denominator  # one rounding, to nearest even
