"""Test vmapped ensembles: each member equals a single run in state, metrics and logs."""

from __future__ import annotations

import csv
import itertools
import json
import math
import pathlib
import signal
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import Last, Max, Mean, Metrics, Min, Sum, checkpoint, tree
from ftrain.core.errors import NonFiniteError
from ftrain.loop import BatchEnd, callbacks
from ftrain.loop._metric_columns import read
from ftrain.loop._metric_totals import MetricTotals
from tests.campaign import examples
from tests.loop.ensembles import (
    MEMBERS,
    Notices,
    ensemble,
    eval_data,
    member,
    row,
    rows_of,
    train_data,
    trainer,
)
from tests.loop.runs import Interrupts

KINDS = {"mean": Mean, "sum": Sum, "last": Last, "max": Max, "min": Min}
CLOCKS = ("duration", "samples_per_second", "tokens_per_second")


def test_ensemble_members_equal_single_runs_over_200_steps(tmp_path: pathlib.Path) -> None:
    """One member skips 5 of 24 batches. State, results and rows equal those of single runs."""
    poisoned = (3, 4, 5, 6, 20)
    logs = [
        callbacks.JSONLLogger(tmp_path / "metrics.jsonl"),
        callbacks.CSVLogger(tmp_path / "m.csv"),
    ]
    found = trainer(Notices(), *logs).fit(
        ensemble(), train_data(poisoned=poisoned), eval_data(), max_steps=200
    )
    assert found.status == "completed"
    rows = rows_of(tmp_path / "metrics.jsonl")
    with (tmp_path / "m.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    for i in range(MEMBERS):
        log = callbacks.JSONLLogger(tmp_path / f"{i}.jsonl")
        alone = trainer(Notices(), log, single=True).fit(
            member(i, i == 1), train_data(poisoned=poisoned), eval_data(), max_steps=200
        )
        assert tree.digest(row(found.state, i)) == tree.digest(alone.state)
        assert len(alone.history) == len(found.history)
        for mine, theirs in zip(alone.history, found.history, strict=True):
            assert (mine.split, mine.epoch, mine.step) == (theirs.split, theirs.epoch, theirs.step)
            members = {name: values[i] for name, values in theirs.members.items()}
            extremes = ("grad_norm_min", "grad_norm_max")
            assert members == {k: v for k, v in mine.metrics.items() if k not in extremes}
        for mine, theirs, cells in zip(rows_of(log.path), rows, table, strict=True):
            for name, value in mine.items():
                if name not in (*CLOCKS, "time", "grad_norm_min", "grad_norm_max"):
                    theirs_is = theirs.get(f"{name}/member_{i}", theirs.get(name))
                    assert theirs_is == value, name
                    cell = cells.get(f"{name}/member_{i}", cells[name])
                    assert str(cell) == str(value), name
    skipped = sum(e.members["skipped"][1] for e in found.history if e.split == "train")
    assert skipped == sum((step % 24) in poisoned for step in range(200))
    for each in rows:
        values = [each[f"loss/member_{i}"] for i in range(MEMBERS)]
        assert each["loss"] == pytest.approx(statistics.mean(values))
        assert (each["loss_min"], each["loss_max"]) == (min(values), max(values))


def test_an_ensemble_member_that_skips_every_step_does_not_fail_the_run() -> None:
    """A list of zeros once counted as a skipped step, so a healthy ensemble failed."""
    notices, data = Notices(), train_data(40, poisoned=range(12, 40))
    found = trainer(notices, max_skipped=8).fit(ensemble(), data, max_steps=40)
    assert found.status == "completed"
    assert found.train.members["skipped"] == (0, 28, 0)
    assert found.train.metrics["skipped"] == pytest.approx(28 / 3)
    lost = [said for said in notices.said if "Still training" in said]
    assert lost == [
        "member 1 skipped 8 or more steps in a row and did not change. Still training: 2 of 3 "
        "members. Start member 1 again with a lower learning rate, or check its batches"
    ]
    named = [said for said in notices.said if said not in lost]
    assert "member 1 skipped 8 steps, the last one at step 20 (epoch 1, batch 20)" in named[0]
    alone = trainer(single=True, max_skipped=None).fit(member(1, True), data[:12], max_steps=12)
    assert tree.digest(row(found.state, 1).params) == tree.digest(alone.state.params)
    healthy = trainer(max_skipped=8).fit(ensemble(bad=None), data, max_steps=40)
    assert healthy.train.members["skipped"] == (0, 0, 0)


def test_a_run_fails_if_every_ensemble_member_skips_its_steps() -> None:
    state = ensemble().replace(buffers={"bad": torch.ones(MEMBERS)})
    made = trainer(Notices(), max_skipped=8)
    with pytest.raises(
        NonFiniteError, match="8 steps in a row were skipped by every member"
    ) as error:
        made.fit(state, train_data(40, poisoned=range(12, 40)), max_steps=40)
    assert "step 20, batch 20 of epoch 1: aten.scalar_tensor.default gives 1 NaN" in str(
        error.value
    )


def test_skipped_step_counts_of_an_ensemble_continue_after_a_resume(tmp_path: pathlib.Path) -> None:
    """One member skips from step 12, all from step 17; the run is interrupted at step 15."""
    data = train_data(40, poisoned=range(12, 40))
    state = ensemble().replace(buffers={"bad": torch.tensor([1.0, 1.0, 0.0])})
    late = {**data[0], "poison": torch.full((4,), 0.0)}
    data[14] = late
    stops = Interrupts(signal.SIGINT, BatchEnd, 18)
    first = trainer(Notices(), stops, store=tmp_path).fit(state, data, max_steps=40)
    assert first.status == "interrupted"
    latest = checkpoint.Store(tmp_path).latest()
    assert latest is not None
    saved = json.loads((latest / "manifest.json").read_text())["metadata"]
    assert saved["nonfinite"] == [3, 3, 0]
    second = trainer(Notices(), store=tmp_path).fit(state, data, max_steps=40, resume=True)
    whole = trainer(Notices()).fit(state, data, max_steps=40)
    assert tree.digest(second.state) == tree.digest(whole.state)
    assert second.train.members == whole.train.members


@pytest.mark.parametrize("at", [1, 13, 24])
def test_a_resumed_ensemble_equals_an_uninterrupted_one(at: int, tmp_path: pathlib.Path) -> None:
    def run(folder: str, *more: Any, **options: Any) -> Any:
        log = callbacks.JSONLLogger(tmp_path / folder / "metrics.jsonl")
        store = tmp_path / folder / "checkpoints"
        watching = callbacks.EarlyStopping(50, monitor="eval/loss_max")
        made = trainer(Notices(), log, watching, *more, store=store, eval_every=7)
        data = train_data(poisoned=(3, 20))
        return made.fit(ensemble(), data, eval_data(), max_steps=30, **options), log.path

    expected, whole = run("whole")
    first, _ = run("parts", Interrupts(signal.SIGTERM, BatchEnd, at))
    assert first.status == "interrupted"
    with pytest.warns(ftrain.loop.CallbackWarning, match="Interrupts"):
        second, parts = run("parts", resume=True)
    assert tree.digest(second.state) == tree.digest(expected.state)
    histories = [
        json.dumps([e.to_json(clock=False) for e in r.history], sort_keys=True)
        for r in (second, expected)
    ]
    assert histories[0] == histories[1]
    strip = [
        [{k: v for k, v in each.items() if k not in (*CLOCKS, "time")} for each in rows_of(path)]
        for path in (parts, whole)
    ]
    assert strip[0] == strip[1]


@settings(max_examples=examples(20, 30), deadline=None)
@given(
    values=st.lists(
        st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.booleans()), min_size=3, max_size=3),
        min_size=1,
        max_size=12,
    ),
    cuts=st.lists(st.integers(0, 12), max_size=3),
    saved=st.booleans(),
    poisons=st.booleans(),
)
def test_metrics_of_an_ensemble_member_equal_those_of_a_single_run(
    values: Any, cuts: list[int], saved: bool, poisons: bool
) -> None:
    """They are equal for every kind of metric, any skipped steps, and any steps of reading."""

    def metrics(step: Any) -> Metrics:
        x = torch.tensor([value for value, _ in step])
        skip = torch.tensor([skipped for _, skipped in step])
        x = torch.where(skip & poisons, torch.nan, x)
        entries: dict[str, Any] = {"loss": ftrain.core.metrics.BatchMean(x, torch.ones(3))}
        for name, kind in KINDS.items():
            entries[name] = kind(x, x.abs() + 1) if kind is Mean else kind(x)
        entries["skipped"] = Sum(skip.to(torch.int64))
        return Metrics(entries)

    steps = [metrics(step) for step in values]
    singles = [[Metrics(row(step.entries, i)) for step in steps] for i in range(3)]
    together = MetricTotals()
    bounds = sorted({0, len(steps), *(min(c, len(steps)) for c in cuts)})
    for low, high in itertools.pairwise(bounds):
        together = together.add(read(steps[low:high], [4] * (high - low), 3))
        if saved:
            together = MetricTotals.from_json(json.loads(json.dumps(together.to_json())))
    for i, single in enumerate(singles):
        alone = MetricTotals().add(read(single, [4] * len(single)))
        mine = {name: each[i] for name, each in together.by_member().items()}
        assert repr(mine) == repr(alone.values())
        applied = [value for (value, skip) in (step[i] for step in values) if not skip]
        assert alone.values()["skipped"] == len(values) - len(applied)
        if applied:
            assert alone.values()["loss"] == pytest.approx(statistics.mean(applied), abs=1e-2)
            assert alone.values()["max"] == max(applied)
        else:
            assert math.isnan(alone.values()["loss"])


def test_training_means_include_only_applied_steps() -> None:
    data = train_data(10, poisoned=(3,))
    found = trainer(Notices(), single=True).fit(member(0, True), data, epochs=1).train
    rest = trainer(Notices(), single=True).fit(member(0, True), data[:3], epochs=1).train
    assert found.metrics["skipped"] == 1
    assert math.isfinite(found.loss)
    assert found.samples == 40
    first = trainer(Notices(), single=True).fit(member(0, True), data[:4], epochs=1).train
    assert first.loss == rest.loss
    assert first.metrics["rows"] == rest.metrics["rows"] == 12
    assert first.metrics["largest"] == rest.metrics["largest"]
    none = trainer(Notices(), single=True, max_skipped=None).fit(
        member(0, True), data[3:4], epochs=1
    )
    assert math.isnan(none.train.loss)
    assert none.train.metrics["skipped"] == 1
    assert none.train.metrics["learning_rate"] == pytest.approx(0.01)
