"""Test that the short forms of tests keep what they promise."""

from __future__ import annotations

import itertools

import pytest

from tests import campaign


@pytest.mark.parametrize("sizes", [(4, 4, 2, 2), (4, 4, 2), (5, 2, 7, 4), (11, 7, 4)])
def test_halved_product_contains_any_two_values_of_two_factors(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "CAMPAIGN", False)
    factors = [list(range(size)) for size in sizes]
    half = campaign.product(*factors)
    assert len(half) <= (len(list(itertools.product(*factors))) + 1) // 2
    for i, j in itertools.combinations(range(len(sizes)), 2):
        pairs = {(entry[i], entry[j]) for entry in half}
        assert pairs == set(itertools.product(factors[i], factors[j]))


def test_campaign_takes_all_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "CAMPAIGN", True)
    assert campaign.choice([1], [1, 2]) == [1, 2]
    assert campaign.examples(3, 9) == 9
    assert len(campaign.product("ab", "cd", "ef")) == 8
