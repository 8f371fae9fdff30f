"""Long forms of tests, which run if `FTRAIN_CAMPAIGN` is set in the environment (`make campaign`)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

__all__ = ["CAMPAIGN", "COMPILED", "choice", "examples", "long", "product"]

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


def product(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return the product of three or more factors; in the suite every second entry of it.

    Any two values of two factors still meet in an entry, if each factor has two values or more.
    """
    numbered = itertools.product(*(enumerate(factor) for factor in factors))
    return [
        tuple(value for _, value in entry)
        for entry in numbered
        if CAMPAIGN or sum(number for number, _ in entry) % 2 == 0
    ]
