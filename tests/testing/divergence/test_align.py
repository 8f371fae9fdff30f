"""Test the alignment of two sequences of operators."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ftrain.testing.divergence.align import Gap, align
from ftrain.testing.divergence.operator_locations import Place
from ftrain.testing.divergence.trace import OperatorRecord


def operators(names: str, line: str = "") -> list[OperatorRecord]:
    return [
        OperatorRecord(name, (), (), "", (), Place(line=f"{line}{i}"))
        for i, name in enumerate(names)
    ]


sequences = st.text("abc", max_size=12)


@given(sequences, sequences)
def test_alignment_covers_both_sequences_in_order_and_pairs_equal_names(one: str, two: str) -> None:
    alignment = align(operators(one, "a"), operators(two, "b"))
    rows = alignment.rows()
    assert [i for i, _ in rows if i is not None] == list(range(len(one)))
    assert [j for _, j in rows if j is not None] == list(range(len(two)))
    assert all(one[i] == two[j] for i, j in alignment.pairs)
    assert [row for row in rows if None not in row] == list(alignment.pairs)


@given(sequences)
def test_equal_sequences_are_aligned_completely(names: str) -> None:
    alignment = align(operators(names, "a"), operators(names, "b"))
    assert alignment.pairs == tuple((i, i) for i in range(len(names)))
    assert alignment.gaps == ()


def test_inserted_operator_is_a_gap_of_the_alignment() -> None:
    alignment = align(operators("abcd"), operators("abxcd", "other "))
    assert alignment.gaps == (Gap(range(2, 2), range(2, 3)),)
    assert alignment.rows()[2:4] == [(None, 2), (2, 3)]


def test_operators_with_equal_names_are_aligned_by_source_line() -> None:
    a = operators("a")
    b = [*operators("a", "other "), *a]
    assert align(a, b).pairs == ((0, 1),)
    assert align(operators("a", "third "), b).pairs == ((0, 0),)
