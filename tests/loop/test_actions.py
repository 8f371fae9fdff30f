"""Test the actions that callbacks request: stop, replace, accumulate, evaluate, log and save."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ftrain
from ftrain import tree
from ftrain.loop import (
    Accumulate,
    EpochEnd,
    Evaluate,
    EvaluateEnd,
    Log,
    Replace,
    Save,
    Stop,
)
from tests.loop.runs import STEPS, Requests, digest, fit, rows, trainer

BATCHES = [{name: x[8 * i : 8 * i + 8] for name, x in rows().items()} for i in range(3)]


def test_the_stop_action_ends_the_run_with_its_reason() -> None:
    result = fit(Requests.once(Stop("enough")), epochs=5)
    assert (result.status, result.reason, result.step) == ("stopped", "enough", 1)


def test_a_run_resumes_after_a_resumable_stop(tmp_path: Any) -> None:
    made = trainer(Requests(Stop("time", resumable=True), n=5), store=tmp_path)
    assert fit(made, epochs=2).reason == "time"
    result = fit(trainer(store=tmp_path), epochs=2, resume=True)
    assert result.status == "completed"
    assert digest(result) == digest(fit(trainer(), epochs=2))


def test_the_replace_action_requires_a_state_of_the_same_structure() -> None:
    other = STEPS.init_state(7)
    result = fit(Requests.once(Replace(other)), max_steps=1)
    assert digest(result) == tree.digest(other)
    with pytest.raises(ValueError, match="expected a state of the same structure"):
        fit(Requests.once(Replace({"w": torch.zeros(1)})), max_steps=1)


def test_the_replace_action_gives_bitwise_equal_weights_with_and_without_donation() -> None:
    def halved(event: Any) -> Any:
        params = tree.map(lambda p: 0.5 * p, event.state.params)
        return Replace(event.state.replace(params=params))

    results = [
        fit(Requests.once(halved, compile=compiled), max_steps=4)
        for compiled in (False, {"backend": "eager"})
    ]
    assert digest(results[0]) == digest(results[1])


def test_the_accumulate_action_takes_effect_at_the_next_step() -> None:
    result = trainer(Requests(Accumulate(2))).fit(STEPS.init_state(0), BATCHES * 2, epochs=1)
    assert result.step == 4  # steps of 1, 2, 2 and 1 batches
    assert result.train.samples == 48


def test_requested_evaluations_run_once_per_step_and_name() -> None:
    seen: list[tuple[str, float]] = []

    class Sees:
        def on_evaluate_end(self, event: Any) -> None:
            seen.append((event.name, event.result.loss))

    def smaller(event: Any) -> Any:
        params = tree.map(lambda p: 0 * p, event.state.params)
        return Evaluate(event.state.replace(params=params), "zero")

    made = trainer(
        Requests(Evaluate()),
        Requests(Evaluate()),
        Requests(smaller, EvaluateEnd),
        Sees(),
        eval_every=50,
    )
    result = fit(made, max_steps=1)
    assert [name for name, _ in seen] == ["", "zero"]
    assert seen[1][1] == pytest.approx(1.0986, abs=1e-4)
    assert [each.split for each in result.history[:2]] == ["eval", "eval/zero"]


def test_logged_values_join_the_row_of_their_event() -> None:
    logged: list[tuple[str, dict[str, float]]] = []

    class Sees:
        def on_logged(self, event: Any) -> None:
            logged.append((event.split, dict(event.values)))

    made = trainer(
        Requests(Log({"mine": torch.tensor(2.0)}), EpochEnd),
        Requests(Log({"other": 1}, "extra")),
        Sees(),
    )
    fit(made, epochs=1)
    assert next(row for split, row in logged if split == "train_epoch")["mine"] == 2.0
    assert ("extra", {"other": 1.0}) in logged


@pytest.mark.parametrize("value", [torch.zeros(0), torch.zeros(2, 2), "high", None], ids=repr)
def test_a_logged_value_that_is_not_a_number_raises_with_its_name(value: Any) -> None:
    with pytest.raises(TypeError, match="Log: value 'mine': expected a number"):
        fit(Requests.once(Log({"mine": value})), max_steps=1)


def test_several_saves_of_one_step_write_one_checkpoint(tmp_path: Any) -> None:
    seen: list[Any] = []

    class Sees:
        def on_saved(self, event: Any) -> None:
            seen.append((event.progress.step, event.tag))

    store = ftrain.checkpoint.Store(tmp_path, keep_best=1, metric="eval")
    made = trainer(Requests(Save("a")), Requests(Save("best", {"eval": 1.0})), Sees(), store=store)
    fit(made, max_steps=3)
    assert seen == [(1, "best"), (3, "last")]
    assert store.best().name == "step-000000000001"  # type: ignore[union-attr]


def test_a_callback_that_logs_on_every_log_event_raises() -> None:
    class Echo:
        def on_logged(self, event: Any) -> Any:
            return Log({"again": 1.0})

    with pytest.raises(RuntimeError, match="Fix the callback"):
        fit(trainer(Echo()), epochs=1)
