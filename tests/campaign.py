"""Long forms of tests, which run if `FTRAIN_CAMPAIGN` is set in the environment (`make campaign`)."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

__all__ = ["CAMPAIGN", "COMPILED", "choice", "examples", "long", "product", "sample", "spread"]

CAMPAIGN = bool(os.environ.get("FTRAIN_CAMPAIGN"))

#: Mark of a test that the suite leaves out.
long = pytest.mark.skipif(not CAMPAIGN, reason="FTRAIN_CAMPAIGN is not set: minutes")

#: Backend of a test whose graph the suite runs operator by operator; machine code takes seconds.
COMPILED = "inductor" if CAMPAIGN else "eager"


def examples(few: int, many: int) -> int:
    """Return the number of Hypothesis examples: `few` in the suite, `many` in a campaign."""
    return many if CAMPAIGN else few


def choice(few: Iterable[Any], all_cases: Iterable[Any]) -> list[Any]:
    """Return the cases of a test: `few` in the suite, which must be among `all_cases`, or all."""
    few, all_cases = list(few), list(all_cases)
    assert all(case in all_cases for case in few)
    return all_cases if CAMPAIGN else few


def sample(count: int, cases: Iterable[Any]) -> list[Any]:
    """Return the cases of a test: in the suite `count` of them, drawn with a fixed seed, or all."""
    cases = list(cases)
    if CAMPAIGN or count >= len(cases):
        return cases
    return [cases[i] for i in sorted(random.Random(len(cases)).sample(range(len(cases)), count))]


def spread(first: Iterable[Any], second: Iterable[Any], each: int = 1) -> list[tuple[Any, Any]]:
    """Return the product of two factors; in the suite each value of `first` meets `each` of `second`.

    The next value of `first` begins at the next value of `second`, so that all of them are met.
    """
    first, second = list(first), list(second)
    if CAMPAIGN:
        return list(itertools.product(first, second))
    stride = max(len(second) // each, 1)
    places = [
        sorted({(i + k * stride) % len(second) for k in range(each)}) for i in range(len(first))
    ]
    return [(value, second[at]) for value, found in zip(first, places, strict=True) for at in found]


def product(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return the product of three or more factors; in the suite a part of it.

    In that part any two values of two factors still meet in an entry. Each entry is the one with
    the most pairs that no entry before it has: 16 of 64 for four factors of 4, 4, 2 and 2 values.
    """
    entries = list(itertools.product(*(range(len(factor)) for factor in factors)))
    taken: list[tuple[int, ...]] = []
    missing = set().union(*map(_pairs, entries))
    while missing and not CAMPAIGN:
        taken.append(max(entries, key=lambda entry: len(_pairs(entry) & missing)))
        missing -= _pairs(taken[-1])
    return [
        tuple(factor[number] for factor, number in zip(factors, entry, strict=True))
        for entry in (entries if CAMPAIGN else sorted(taken))
    ]


def _pairs(entry: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    """Return the pairs of values of an entry, each with the positions of their factors."""
    return set(itertools.combinations(enumerate(entry), 2))
