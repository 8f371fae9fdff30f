"""Trajectories of 100 steps against `torch.optim` and optax, and the page that reports them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.optim import page
from tests.optim.cases import CASES, algorithms
from tests.optim.parity import BOUNDS, difference
from tests.optim.parity_table import PARITY


@pytest.mark.parametrize("row", PARITY, ids=lambda row: f"{row.algorithm}-{row.oracle}")
@given(st.data())
@settings(max_examples=3)
def test_100_steps_are_the_oracle_s(row, data):
    h, seed = data.draw(row.hyper), data.draw(st.integers(0, 2**31))
    for dtype, bound in BOUNDS.items():
        assert difference(row, h, seed, dtype) <= bound, dtype


def test_the_page_reports_what_is_tested():
    figures = page.figures_in(page.table())
    assert list(figures) == [(row.algorithm, row.oracle) for row in page.ROWS]
    assert page.render(figures) == page.table()
    for found in figures.values():
        assert all(float(x) <= bound for x, bound in zip(found, BOUNDS.values(), strict=True))


def test_every_algorithm_has_its_lines():
    assert algorithms() == set(page.NOTES)
    for name, case in CASES.items():
        algorithm = name.replace(" ", "_").replace("-", "_")
        found = {row.oracle for row in page.ROWS if row.algorithm == algorithm}
        assert found | set(page.ELSEWHERE.get(algorithm, ())) == {*case.oracles}, name
