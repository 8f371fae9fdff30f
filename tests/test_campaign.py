"""Test that the short forms of tests keep what they promise."""

from __future__ import annotations

import itertools

import pytest

from tests import campaign


@pytest.mark.parametrize(
    ("sizes", "count"), [((4, 4, 2, 2), 16), ((4, 4, 2), 16), ((5, 2, 7, 4), 35), ((11, 7, 4), 77)]
)
def test_reduced_product_of_test_parameters_has_every_pair_of_values_of_two_parameters(
    sizes: tuple[int, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In as few entries as there are pairs of values of the two largest factors."""
    monkeypatch.setattr(campaign, "CAMPAIGN", False)
    factors = [list(range(size)) for size in sizes]
    taken = campaign.product(*factors)
    assert len(taken) == len(set(taken)) == count
    for i, j in itertools.combinations(range(len(sizes)), 2):
        pairs = {(entry[i], entry[j]) for entry in taken}
        assert pairs == set(itertools.product(factors[i], factors[j]))


def test_sample_of_test_cases_is_deterministic_and_keeps_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(campaign, "CAMPAIGN", False)
    assert campaign.sample(4, range(20)) == [3, 4, 8, 10]
    assert campaign.sample(4, "abc") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("first", "second", "each"), [(9, 4, 1), (36, 11, 4), (5, 5, 2), (8, 3, 3)]
)
def test_reduced_pairs_of_two_test_parameters_have_every_value_of_both(
    first: int, second: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "CAMPAIGN", False)
    taken = campaign.spread(range(first), range(second), each)
    assert len(taken) == len(set(taken)) == first * each
    assert {a for a, _ in taken} == set(range(first))
    assert {b for _, b in taken} == set(range(second))


def test_no_test_case_is_left_out_in_a_full_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "CAMPAIGN", True)
    assert campaign.choice([1], [1, 2]) == [1, 2]
    assert campaign.examples(3, 9) == 9
    assert campaign.sample(2, "abc") == ["a", "b", "c"]
    assert len(campaign.product("ab", "cd", "ef")) == 8
    assert len(campaign.spread("abc", "def")) == 9
