"""Test the optimizer comparison at a tiny size: the search for rates, and all its figures."""

from __future__ import annotations

import dataclasses
import math

from benchmarks import optimizers
from benchmarks.optimizers import QUICK, Curve, tuned


def test_learning_rate_search_widens_its_grid_until_the_best_rate_is_not_at_its_edge():
    def valley(rate):
        return math.log2(rate / 8) ** 2

    assert sorted(tuned(valley, (1, 2, 4), widen=3)) == [1, 2, 4, 8, 16]
    assert sorted(tuned(valley, (32, 64), widen=4)) == [4, 8, 16, 32, 64]
    assert sorted(tuned(valley, (1, 2), widen=1)) == [1, 2, 4]
    assert len(tuned(lambda rate: math.inf if rate > 4 else -rate, (1, 2, 4), widen=3)) == 4


def test_number_of_updates_to_reach_a_loss_is_that_of_the_first_evaluation_below_it():
    curve = Curve([(0, 4.0), (10, 3.0), (20, 3.5), (30, math.nan)], 0.0)
    assert curve.updates_to(3.2) == 10
    assert curve.updates_to(1.0) == math.inf
    assert curve.end == math.inf


def test_optimizer_comparison_reports_every_contender(monkeypatch):
    budget = dataclasses.replace(QUICK, steps=8, eval_every=4)
    text = optimizers.data.standard_library(20_000)
    monkeypatch.setattr(optimizers.data, "standard_library", lambda: text)
    few = {name: one._replace(rates=one.rates[:1]) for name, one in optimizers.CONTENDERS.items()}
    monkeypatch.setattr(optimizers, "CONTENDERS", few)
    report = optimizers.run(budget, "eager")
    for name in optimizers.CONTENDERS:
        rows = report.content["curves"][name]["held_out"]
        assert [step for step, _ in rows[0]] == [0, 4, 8]
        assert all(row[-1][1] < row[0][1] for row in rows)
        assert rows[0] != rows[1]  # another seed
    ends = [rows["held_out"][0][0][1] for rows in report.content["curves"].values()]
    assert len(set(ends)) == 1  # one start for all
