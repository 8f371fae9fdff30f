"""Test callbacks that stop, save or change a run against plain reference code."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import checkpoint, optim, tree
from ftrain.loop import (
    Accumulate,
    EpochEnd,
    EpochResult,
    EvaluateEnd,
    Progress,
    Save,
    Stop,
    TrainBegin,
    WindowEnd,
    callbacks,
)
from tests.loop.runs import (
    STEPS,
    digest,
    eval_data,
    fit,
    loss_fn,
    model,
    train_data,
    trainer,
)

NUMBERS = st.floats(-4, 4, width=16) | st.just(math.nan)


def evaluated(step: int, name: str = "", **metrics: float) -> EvaluateEnd:
    result = EpochResult("eval", 0, step, metrics, 1, 0)
    return EvaluateEnd(Progress(step=step), float(step), None, result, name)


def replayed(callback: Any, events: list[Any]) -> tuple[Any, list[tuple[int, Any]]]:
    """Call a callback with events; return its last state and the requested actions by event.

    Between two events, the state is converted to JSON and back.
    """
    state, requested = callback.init(), []
    for i, event in enumerate(events):
        before = json.dumps(state)
        new, actions = callback(state, event)
        assert json.dumps(state) == before  # the callback does not modify its state
        requested += [(i, action) for action in actions]
        state = json.loads(json.dumps(new))
    return state, requested


@given(
    values=st.lists(NUMBERS, max_size=20),
    patience=st.integers(1, 4),
    delta=st.sampled_from([0.0, 0.5]),
    sign=st.sampled_from([1, -1]),
)
def test_early_stopping_stops_after_patience_values_without_improvement(
    values: list[float], patience: int, delta: float, sign: int
) -> None:
    stops, best, best_at = [], math.inf, -1
    for i, value in enumerate(values):
        if value < best - delta:
            best, best_at = value, i
        elif i - best_at >= patience:
            stops.append(i)
    callback = callbacks.EarlyStopping(
        patience, mode="min" if sign > 0 else "max", min_delta=delta, monitor="eval/x"
    )
    _, requested = replayed(callback, [evaluated(i, x=sign * v) for i, v in enumerate(values)])
    assert [i for i, _ in requested] == stops
    assert all(isinstance(action, Stop) and not action.resumable for _, action in requested)


@given(values=st.lists(NUMBERS, max_size=20), k=st.integers(1, 4), sign=st.sampled_from([1, -1]))
def test_checkpointing_saves_each_step_among_the_best_k_so_far(
    values: list[float], k: int, sign: int
) -> None:
    """Therefore the best k steps of the whole run are saved."""
    saves, so_far = [], []
    for i, value in enumerate(values):
        if not math.isnan(value):
            if sum(v <= value for v in so_far) < k:
                saves.append(i)
            so_far.append(value)
    callback = callbacks.Checkpointing(best=k, mode="min" if sign > 0 else "max", monitor="eval/x")
    state, requested = replayed(callback, [evaluated(i, x=sign * v) for i, v in enumerate(values)])
    assert [i for i, _ in requested] == saves
    assert [sign * v for v in state["best"]] == sorted(so_far)[:k]
    for i, action in requested:
        assert isinstance(action, Save)
        assert action.metrics == {"eval/x": sign * values[i], "x": sign * values[i]}


def test_store_keeps_the_best_checkpoints_and_the_last(tmp_path: pathlib.Path) -> None:
    store = checkpoint.Store(tmp_path, keep_last=1, keep_best=2, metric="eval/loss")
    result = fit(trainer(callbacks.Checkpointing(best=2), store=store, eval_every=2), epochs=4)
    losses = {each.step: each.loss for each in result.history if each.split == "eval"}
    ranked = sorted(losses, key=lambda step: losses[step])
    assert store.steps() == sorted({*ranked[:2], result.step})
    assert store.best() == tmp_path / f"step-{ranked[0]:012d}"


def test_checkpointing_saves_every_n_steps_or_minutes(tmp_path: pathlib.Path) -> None:
    store = checkpoint.Store(tmp_path, keep_last=None)
    fit(trainer(callbacks.Checkpointing(every=3), store=store, save_every=1000), max_steps=7)
    assert store.steps() == [3, 6, 7]
    store = checkpoint.Store(tmp_path / "time", keep_last=None)
    by_time = callbacks.Checkpointing(minutes=1e-9)
    fit(trainer(by_time, store=store, save_every=1000), max_steps=3)
    assert store.steps() == [1, 2, 3]


@pytest.mark.parametrize("monitor", ["eval/loss", "train/loss"])
def test_early_stopping_and_checkpointing_make_the_same_decisions_after_a_resume(
    monitor: Any, tmp_path: pathlib.Path
) -> None:
    def made(folder: str) -> Any:
        store = checkpoint.Store(tmp_path / folder, keep_last=1, keep_best=2, metric=monitor)
        watching = [
            callbacks.EarlyStopping(2, monitor=monitor, min_delta=0.05),
            callbacks.Checkpointing(best=2, monitor=monitor),
        ]
        return trainer(*watching, store=store), store

    run, uninterrupted = made("uninterrupted")
    expected = fit(run, epochs=40)
    assert expected.status == "stopped"
    for epochs in (2, 3, 40):
        run, store = made("resumed")
        result = fit(run, epochs=epochs, resume="auto")
        store.close()
    assert (result.status, result.reason) == (expected.status, expected.reason)
    assert digest(result) == digest(expected)
    assert store.steps() == uninterrupted.steps()
    assert store.best().name == uninterrupted.best().name  # type: ignore[union-attr]


def test_an_invalid_metric_name_raises_with_the_correct_name() -> None:
    with pytest.raises(ValueError, match="Did you mean 'eval/loss'"):
        callbacks.EarlyStopping(1, monitor="loss")
    watching = callbacks.EarlyStopping(1, monitor="eval/acuracy")
    with pytest.raises(ValueError, match="Did you mean 'eval/accuracy'"):
        watching(watching.init(), evaluated(1, loss=1.0, accuracy=0.5))
    named = callbacks.EarlyStopping(1, monitor="eval/ema/loss")
    assert replayed(named, [evaluated(1, loss=0.0)] * 3)[1] == []
    assert len(replayed(named, [evaluated(1, "ema", loss=0.0)] * 3)[1]) == 2
    with pytest.raises(ValueError, match="expected at least one of every, minutes and best"):
        callbacks.Checkpointing()
    with pytest.raises(ValueError, match="patience"):
        callbacks.EarlyStopping(0)


def test_early_stopping_without_an_evaluation_raises() -> None:
    made = trainer(callbacks.EarlyStopping(1))
    with pytest.raises(
        ValueError, match="unknown metric .eval/loss., because the run has no evaluation"
    ):
        made.fit(STEPS.init_state(0), train_data(), epochs=1)


@pytest.mark.parametrize("by", ["epoch", "step"])
def test_accumulation_schedule_sets_the_number_of_batches_per_step(
    by: Any, tmp_path: pathlib.Path
) -> None:
    """Check the batches of each step, also in a run that is interrupted and resumed."""

    class Sizes:
        def __init__(self) -> None:
            self.found: list[int] = []

        def on_batch_end(self, event: Any) -> None:
            self.found.append(len(tree.leaves(event.batch)) // 2)

    schedule = {"epoch": {1: 3, 2: 7}, "step": {0: 2, 3: 1, 5: 4}}[by]
    expected = {"epoch": [1] * 7 + [3, 3, 1] + [7], "step": [2, 2, 2, 1, 1, 4, 2, 4, 3]}[by]
    for ends in ((3,), (1, 2, 3)):
        sizes = Sizes()
        for end in ends:
            made = trainer(
                callbacks.AccumulationSchedule(schedule, by=by), sizes, store=tmp_path / str(ends)
            )
            fit(made, epochs=end, resume="auto")
        assert sizes.found == expected


@given(st.dictionaries(st.integers(0, 9), st.integers(1, 9), min_size=1))
def test_accumulation_schedule_depends_only_on_the_progress(schedule: dict[int, int]) -> None:
    callback, k = callbacks.AccumulationSchedule(schedule), 1
    result = EpochResult("train", 0, 0, {}, 1, 0)
    for done in range(11):
        k = schedule.get(done, k)
        now = Progress(epoch=done)
        begin = TrainBegin(now, 0.0, None, None)  # type: ignore[arg-type]  # not looked at
        assert list(callback(None, begin)[1]) == [Accumulate(k)]
        requested = list(callback(None, EpochEnd(now, 0.0, None, result))[1])
        assert requested == ([Accumulate(k)] if done in schedule else [])


def test_accumulation_schedule_refuses_invalid_schedules() -> None:
    for schedule in ({}, {-1: 2}, {0: 0}):
        with pytest.raises(ValueError, match="schedule: expected"):
            callbacks.AccumulationSchedule(schedule)


def test_a_run_stopped_by_a_time_limit_resumes(tmp_path: pathlib.Path) -> None:
    expected = fit(trainer(), epochs=2)
    limit = callbacks.TimeLimit(seconds=1e-9)
    for _ in range(3):
        result = fit(trainer(limit, store=tmp_path), epochs=2, resume="auto")
        assert result.status == "stopped"
    assert result.step == 3
    assert digest(fit(trainer(store=tmp_path), epochs=2, resume=True)) == digest(expected)
    with pytest.raises(ValueError, match="TimeLimit: expected a time above 0"):
        callbacks.TimeLimit()


@pytest.mark.parametrize("where", ["ema", "swa", "target"])
def test_ema_evaluation_evaluates_the_averaged_weights(where: str) -> None:

    inner = optim.adamw(1e-2)
    optimizer = {"ema": optim.ema(inner, 0.9), "swa": optim.swa(inner, 2)}.get(where, inner)
    steps = ftrain.make_steps(model, loss_fn, optimizer)
    state = steps.init_state(0)
    average = tree.map(lambda p: torch.full_like(p, 0.1, dtype=torch.float64), state.params)
    if where == "target":
        state = state.replace(extras={"target": average})
    made = trainer(callbacks.EMAEvaluation(where), steps=steps)
    result = made.fit(state, train_data(), eval_data(), epochs=1)
    found = next(each for each in result.history if each.split == f"eval/{where}")
    if where != "target":
        average = optim.get(result.state.opt_state, where)
    params = tree.map(lambda a, p: a.to(p.dtype), average, state.params)
    expected = made.evaluate(result.state.replace(params=params), eval_data())
    assert found.metrics == expected.metrics
    assert found.metrics != result.eval.metrics  # type: ignore[union-attr]


def test_ema_evaluation_without_averaged_weights_raises_with_the_remedy() -> None:
    with pytest.raises(LookupError, match=r"[^.]\. Wrap the optimizer: optim.ema"):
        fit(trainer(callbacks.EMAEvaluation()), epochs=1)


@settings(max_examples=30)
@given(st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=12), st.integers(1, 4))
def test_windowed_and_running_averages_are_weighted_by_the_steps_of_each_row(
    values: list[float], rows: int
) -> None:
    events = [
        WindowEnd(Progress(), 0.0, None, {"loss": v}, i + 1, 1, 0, None)
        for i, v in enumerate(values)
    ]
    _, requested = replayed(callbacks.WindowedAverage(rows=rows), events)
    for i, action in requested:
        last = range(max(0, i - rows + 1), i + 1)
        mean = sum(values[j] * (j + 1) for j in last) / sum(j + 1 for j in last)
        assert action.values["loss_windowed"] == pytest.approx(mean, abs=1e-12)
    # Equal to an exponential average over steps if each step has the mean of its window.
    _, requested = replayed(callbacks.RunningAverage(decay=0.8), events)
    total = weight = 0.0
    for i, action in requested:
        for _ in range(i + 1):
            total, weight = 0.8 * total + 0.2 * values[i], 0.8 * weight + 0.2
        assert action.values["loss_running"] == pytest.approx(total / weight, abs=1e-9)
