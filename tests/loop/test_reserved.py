"""Test that every logged value is in every log, or raises because its name is reserved."""

from __future__ import annotations

import csv
import json
import math
import pathlib
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ftrain
from ftrain import Sum, optim
from ftrain.loop import CallbackWarning, Log, LoopWarning, Trainer, WindowEnd, callbacks
from tests.campaign import examples
from tests.loop.runs import STEPS, rows, trainer

PLACES = ("step", "epoch", "split", "time")
CLOCKS = ("duration", "samples_per_second", "tokens_per_second")


def reports(metrics: dict[str, Any], calls: list[Any]) -> Any:
    def step(state: Any, batch: Any) -> Any:
        calls.append(batch)
        return state, {"loss": 1.0, **metrics}

    return step


@pytest.mark.parametrize("name", [*PLACES, *CLOCKS, "step\n"])
def test_a_metric_named_like_a_log_column_is_refused_after_the_first_step(name: str) -> None:
    calls: list[Any] = []
    made = Trainer(reports({name: 2.0}, calls), compile=False, log_every=100)
    with pytest.raises(ValueError, match="Rename it") as error:
        made.fit(None, [torch.zeros(1)] * 50, epochs=1)
    assert f"metric {name!r}" in str(error.value)
    assert len(calls) == 1


@pytest.mark.parametrize("name", [*PLACES, *CLOCKS])
@pytest.mark.parametrize("monitored", [True, False])
def test_an_evaluation_metric_named_like_a_log_column_is_refused(
    name: str, monitored: bool
) -> None:
    """The run fails before the first step if the names are known by then, else after the first batch."""
    calls: list[Any] = []
    evaluated: list[Any] = []

    def eval_step(state: Any, batch: Any) -> Any:
        evaluated.append(batch)
        return {"loss": 1.0, name: 2.0}

    watching = [callbacks.EarlyStopping(1)] if monitored else []
    made = Trainer((reports({}, calls), eval_step), watching, compile=False)
    batches = [torch.zeros(1)] * 5
    with pytest.raises(ValueError, match=f"metric '{name}'"):
        made.fit(None, batches, batches, epochs=1)
    assert (len(calls), len(evaluated)) == ((0, 1) if monitored else (5, 1))
    with pytest.raises(ValueError, match=f"metric '{name}'"):
        made.evaluate(None, batches)


@pytest.mark.parametrize("name", PLACES)
def test_a_loss_function_metric_named_like_a_log_column_is_refused(name: str) -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        return model(batch).mean(), {name: 3.0}

    steps = ftrain.make_steps(torch.nn.Linear(3, 1), loss_fn, optim.sgd(0.1))
    made = Trainer(steps, compile={"backend": "eager"})
    with pytest.raises(ValueError, match=f"metric '{name}'"):
        made.fit(steps.init_state(0), [torch.ones(4, 3)], epochs=1)


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("how", ["raise", "warn"])
def test_a_logged_value_named_like_a_log_column_is_refused(
    name: str, how: str, tmp_path: pathlib.Path
) -> None:
    class Logs:
        on_error = how

        def on_window_end(self, event: Any) -> Any:
            return Log({name: 5.0})

    log = callbacks.JSONLLogger(tmp_path / "metrics.jsonl")
    made = trainer(Logs(), log, log_every=1)
    said = f"Log: value '{name}'"
    if how == "raise":
        with pytest.raises(ValueError, match=said) as error:
            made.fit(STEPS.init_state(0), [rows()], epochs=1)
        assert "Training failed (callback Logs)" in "".join(error.value.__notes__)
    else:
        with pytest.warns(CallbackWarning, match=f"callback Logs raised ValueError: {said}"):
            made.fit(STEPS.init_state(0), [rows()], epochs=1)
        assert json.loads(log.path.read_text().splitlines()[0])["step"] == 1


def test_a_metric_named_like_a_gradient_norm_statistic_is_refused() -> None:
    made = Trainer(reports({"grad_norm": 1.0, "grad_norm_max": 2.0}, []), compile=False)
    with pytest.raises(
        ValueError,
        match="metric 'grad_norm_max': expected a name that the log does not use.* computes from "
        "'grad_norm'",
    ):
        made.fit(None, [torch.zeros(1)], epochs=1)
    alone = Trainer(reports({"grad_norm_max": 2.0}, []), compile=False)
    assert alone.fit(None, [torch.zeros(1)], epochs=1).train.metrics["grad_norm_max"] == 2


def test_a_metric_named_like_the_entry_of_a_vector_metric_is_refused() -> None:
    def step(state: Any, batch: Any) -> Any:
        vector = Sum(torch.ones(2))
        return state, {"loss": torch.tensor(1.0), "c": vector, "c/0": torch.tensor(5.0)}

    with pytest.raises(ValueError, match="got two metrics that write column 'c/0'"):
        Trainer(step, compile=False).fit(STEPS.init_state(0), [torch.ones(1)], epochs=1)


def test_a_metric_named_perplexity_keeps_its_value() -> None:
    made = Trainer(reports({"perplexity": 7.0}, []), compile=False)
    result = made.fit(None, [{"tokens": torch.zeros(2, 3)}], epochs=1).train
    assert result.values()["perplexity"] == 7
    assert result.perplexity == pytest.approx(math.e)
    assert str(result).count("perplexity") == 1
    assert "perplexity 7" in str(result)


@settings(max_examples=examples(20, 40), deadline=None)
@given(
    metrics=st.dictionaries(st.text(max_size=8), st.floats(-9, 9, width=32), max_size=6),
    logged=st.dictionaries(st.text(max_size=8), st.floats(-9, 9, width=32), max_size=3),
)
@example(metrics={"time\r": 1.0}, logged={"a,b": 2.0, '"': 3.0})
@example(metrics={"a\nb": 1.0, "a b": 2.0}, logged={})
@example(metrics={"": 1.0}, logged={})
def test_json_and_csv_logs_contain_every_logged_value(
    metrics: dict[str, float], logged: dict[str, float], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("logs")

    class Logs:
        def on_window_end(self, event: WindowEnd) -> Any:
            return Log({k: v for k, v in logged.items() if k not in event.values})

    logs = [callbacks.JSONLLogger(folder / "m.jsonl"), callbacks.CSVLogger(folder / "m.csv")]
    made = Trainer(reports(metrics, []), [Logs(), *logs], compile=False, log_every=1)
    try:
        made.fit(None, [torch.zeros(1)], max_steps=1)
    except ValueError as error:
        assert "Rename" in str(error)  # noqa: PT017
        return
    first = json.loads((folder / "m.jsonl").read_text().splitlines()[0])
    with (folder / "m.csv").open(newline="", encoding="utf-8") as file:
        table = next(csv.DictReader(file))
    expected = {**logged, "loss": 1.0, **metrics}
    for name, value in expected.items():
        assert first[name] == value
        assert float(table[" ".join(name.splitlines())]) == value
    assert (first["step"], first["split"], table["step"], table["split"]) == (
        1,
        "train",
        "1",
        "train",
    )


def test_duplicate_value_names_in_a_log_row_warn_once() -> None:
    averages = [callbacks.WindowedAverage(rows=1), callbacks.WindowedAverage(rows=3)]
    with pytest.warns(LoopWarning, match="of 'train' has two .* called 'loss_windowed'") as caught:
        trainer(*averages, log_every=1).fit(STEPS.init_state(0), [rows()] * 4, epochs=1)
    assert len(caught) == 1
