"""Test runs that are resumed with batches of another size."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import data
from ftrain.core.accumulate import MicroBatches
from ftrain.loop import BatchEnd, LoopWarning, TrainBegin, TrainEnd, Trainer
from ftrain.loop.callbacks import AccumulationSchedule
from tests.loop.runs import fit, trainer

ROWS = 30


def count(state: dict[str, Any], batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    parts = batch.batches if isinstance(batch, MicroBatches) else (batch,)
    return {"steps": state["steps"] + 1}, {"loss": parts[0]["row"].float().mean()}


def run(store: pathlib.Path, batch: int, last: Any, **options: Any) -> list[Any]:
    """Return the events of a run on the numbers of its rows."""
    accumulate = options.pop("accumulate", 1)
    rows = data.Loader({"row": torch.arange(ROWS)}, batch, seed=1, last_batch=last)
    made = Trainer(
        (count, lambda state, batch: count(state, batch)[1]),
        store=store,
        log_every=2,
        accumulate=accumulate,
        compile=False,
    )
    kinds = (TrainBegin, BatchEnd, TrainEnd)
    begin = {"steps": torch.tensor(0)}
    return [*made.events(begin, rows, rows, resume="auto", kinds=kinds, **options)]


@pytest.mark.filterwarnings("ignore:accumulate")
@settings(max_examples=25, deadline=None)
@given(
    batches=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    at=st.integers(1, 20),
    epochs=st.integers(1, 3),
    last=st.sampled_from(["drop", "keep"]),
    accumulate=st.sampled_from([(1, 1), (2, 2), (1, 3)]),
)
def test_a_run_resumed_with_another_batch_size_ends_after_its_epochs_at_the_planned_step(
    batches: Any, at: int, epochs: int, last: Any, accumulate: Any, tmp_path_factory: Any
) -> None:
    """No epoch has a sample twice or a step too many, even if no batch remains in the current one."""
    store = tmp_path_factory.mktemp("resumed")
    first = run(store, batches[0], last, accumulate=accumulate[0], max_steps=at, epochs=epochs)
    second = run(store, batches[1], last, accumulate=accumulate[1], epochs=epochs)
    result = second[-1].result
    assert second[0].plan.total_steps == result.step
    trained = [each for each in result.history if each.split == "train"]
    assert [each.epoch for each in trained] == [*range(1, epochs + 1)]
    assert all(each.samples <= ROWS for each in trained)
    assert last == "drop" or all(each.samples == ROWS for each in trained)
    assert len(first) + len(second) - 4 == result.step


def test_a_loader_counts_an_epoch_in_which_no_batch_of_its_size_remains() -> None:
    loader = data.Loader({"row": torch.arange(ROWS)}, 12)
    cursor = data.Cursor(0, 0, 20)
    assert [*loader.batches(cursor, 1)] == []
    assert [after for _, after in loader.batches(cursor, 2)] == [
        data.Cursor(0, 1, 12),
        data.Cursor(0, 2),
    ]


def test_resuming_with_another_accumulate_warns_that_the_checkpoint_decides(
    tmp_path: pathlib.Path,
) -> None:
    fit(trainer(store=tmp_path, accumulate=3, save_every=1), max_steps=1)
    with pytest.warns(LoopWarning, match="expected 3, .* got 2; the run resumes with 3"):
        fit(trainer(store=tmp_path, accumulate=2), max_steps=2, resume=True)


@pytest.mark.filterwarnings("error")
def test_resuming_within_a_schedule_of_accumulation_does_not_warn(tmp_path: pathlib.Path) -> None:
    schedule = AccumulationSchedule({0: 2})
    fit(trainer(schedule, store=tmp_path, save_every=1), max_steps=1)
    again = fit(trainer(schedule, store=tmp_path), max_steps=2, resume=True)
    assert again.step == 2
