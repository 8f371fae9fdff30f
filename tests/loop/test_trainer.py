"""Test runs of the trainer: their end, accepted data, events, and accepted callbacks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import ftrain
from ftrain import tree
from ftrain.loop import (
    BatchEnd,
    CallbackWarning,
    Evaluate,
    Log,
    Stop,
    TrainEnd,
    Trainer,
    adapt,
)
from tests.loop.runs import STEPS, Requests, digest, fit, rows, train_data, trainer

BATCHES = [{name: x[8 * i : 8 * i + 8] for name, x in rows().items()} for i in range(3)]


def run(data: Any, **options: Any) -> Any:
    return trainer().fit(STEPS.init_state(0), data, **options)


def names(**options: Any) -> list[str]:
    made = trainer(log_every=2)
    events = made.events(STEPS.init_state(0), BATCHES, BATCHES, **options)
    return [type(event).__name__ for event in events]


def test_events_come_in_the_documented_order() -> None:
    batch = ["BatchBegin", "BatchEnd"]
    evaluated = ["EvaluateBegin", "EvaluateEnd"]
    assert names(epochs=1) == [
        "TrainBegin", "EpochBegin", *batch, *batch, "WindowEnd", "Logged", *batch, "EpochEnd",
        *evaluated, "Logged", "Logged", "WindowEnd", "Logged", "TrainEnd",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ends", "step", "epoch", "reason"),
    [
        ({"epochs": 2}, 6, 2, "2 epochs"),
        ({"max_steps": 4}, 4, 2, "4 steps"),
        ({"epochs": 2, "max_steps": 100}, 6, 2, "2 epochs"),
        ({"epochs": 9, "max_steps": 3}, 3, 1, "3 steps"),
        ({"epochs": 0}, 0, 0, "0 epochs"),
        ({"max_steps": 0}, 0, 0, "0 steps"),
    ],
)
def test_a_run_ends_at_epochs_or_max_steps_whichever_is_first(
    ends: Any, step: int, epoch: int, reason: str
) -> None:
    result = run(BATCHES, **ends)
    assert (result.status, result.step, result.epoch, result.reason) == (
        "completed", step, epoch, reason,
    )  # fmt: skip
    assert int(result.state.step) == step
    if not step:
        assert result.history == ()
        assert digest(result) == tree.digest(STEPS.init_state(0))


def test_an_epoch_of_one_batch_has_a_result() -> None:
    result = run(BATCHES[:1], epochs=3)
    assert (result.step, result.epoch) == (3, 3)
    assert len(result.history) == 3


def test_metrics_of_an_unfinished_epoch_are_in_the_result() -> None:
    result = fit(trainer(), max_steps=4)
    assert [each.split for each in result.history] == ["eval", "train"]
    assert result.train.samples == 32
    assert result.eval.step == 4


class EndsEarly:
    """Data of length ten that yield only three batches."""

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Any:
        return iter(BATCHES)


@pytest.mark.parametrize(
    "data",
    [
        BATCHES,
        tuple(BATCHES),
        EndsEarly(),
        lambda epoch: iter(BATCHES),
        ftrain.data.Stream(BATCHES),
        DataLoader([{k: v[i] for k, v in rows(24).items()} for i in range(24)], batch_size=8),
    ],
    ids=["list", "tuple", "ends early", "function", "stream", "DataLoader"],
)
def test_any_iterable_of_batches_gives_the_same_run(data: Any) -> None:
    result = run(data, epochs=2)
    assert (result.step, result.epoch) == (6, 2)
    assert digest(result) == digest(run(BATCHES, epochs=2))


def test_a_data_function_is_called_with_each_epoch() -> None:
    seen: list[int] = []

    def data(epoch: int) -> Any:
        seen.append(epoch)
        return BATCHES[: epoch + 1]

    assert run(data, epochs=3).step == 6
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ([], ValueError, "train_data: expected at least one batch"),
        (iter(BATCHES), TypeError, "can be iterated only once.*train_data=lambda epoch"),
        (rows(), TypeError, r"train_data: expected batches, got a dict.*train_data=data.Loader\("),
        ("digits", TypeError, "train_data: expected batches, got a str"),
        (3, TypeError, "train_data: expected a data.Loader.*got int"),
        (lambda epoch: [], ValueError, "got 0 from EpochFunction: it is empty"),
    ],
)
def test_fit_refuses_data_that_are_not_batches(
    data: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        run(data, epochs=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"log_every": 0}, "log_every: expected an integer of at least 1, got 0"),
        ({"eval_every": 1.5}, "eval_every: expected"),
        ({"accumulate": True}, "accumulate: expected"),
    ],
)
def test_trainer_refuses_options_out_of_range(options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        trainer(**options)


def test_fit_raises_for_missing_or_invalid_arguments() -> None:
    with pytest.raises(ValueError, match="expected epochs or max_steps"):
        run(BATCHES)
    with pytest.raises(ValueError, match="epochs: expected a number of at least 0, got -1"):
        run(BATCHES, epochs=-1)
    with pytest.raises(TypeError, match="eval_data: expected a trainer with an evaluation step"):
        trainer(steps=STEPS.train_step).fit(STEPS.init_state(0), BATCHES, BATCHES, epochs=1)
    with pytest.raises(TypeError, match="steps: expected the result of ftrain.make_steps"):
        Trainer(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Evaluate: expected a run with eval_data"):
        Requests.once(Evaluate()).fit(STEPS.init_state(0), BATCHES, epochs=1)


def test_trainer_accepts_any_function_of_a_state_and_a_batch_as_step() -> None:
    """The state may be any pytree."""

    def step(state: torch.Tensor, batch: torch.Tensor) -> Any:
        return state + batch.sum(), {"sum": batch.sum()}

    result = Trainer(step, compile=False).fit(torch.tensor(0.0), [torch.ones(2)] * 3, epochs=2)
    assert result.state == 12
    assert result.train.metrics == {"sum": 2.0}


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (object(), "callbacks: expected an object with"),
        (Requests, "expected a callback, got the class Requests"),
        (
            type("Typo", (), {"on_epoch_edn": lambda self, event: None})(),
            "Rename it to on_epoch_end",
        ),
    ],
)
def test_trainer_refuses_objects_that_are_not_callbacks(callback: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        trainer(callback)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "expected `\\(state, actions\\)`, got None"),
        ((0, [3]), "got 3. Return a list of actions"),
        (5, "got 5"),
    ],
)
def test_a_callback_result_other_than_state_and_actions_is_refused(answer: Any, said: str) -> None:
    class Wrong:
        def init(self) -> int:
            return 0

        def __call__(self, state: Any, event: Any) -> Any:
            return answer

    with pytest.raises(TypeError, match=said):
        fit(trainer(Wrong()), epochs=1)


def test_a_callback_with_state_dict_is_restored_on_resume(tmp_path: Any) -> None:
    class Counter:
        def __init__(self) -> None:
            self.epochs = 0

        def on_epoch_end(self, event: Any) -> Any:
            self.epochs += 1
            return Stop("two") if self.epochs == 2 else None

        def state_dict(self) -> Any:
            return {"epochs": self.epochs}

        def load_state_dict(self, state: Any) -> None:
            self.epochs = state["epochs"]

    fit(trainer(Counter(), store=tmp_path), epochs=1)
    second = Counter()
    result = fit(trainer(second, store=tmp_path), epochs=9, resume=True)
    assert (result.status, result.epoch, second.epochs) == ("stopped", 2, 2)
    assert adapt(second).name == "Counter"  # type: ignore[attr-defined]


def test_callbacks_with_the_same_name_have_separate_states(tmp_path: Any) -> None:
    fit(trainer(Requests(Log({})), Requests(Log({}), n=9), store=tmp_path), max_steps=2)
    _, metadata = ftrain.checkpoint.Store(tmp_path).load(like=STEPS.init_state(0))
    assert metadata["callbacks"] == {"Requests": 2, "Requests_2": 2}
    with pytest.warns(CallbackWarning, match="Requests_2"):
        fit(trainer(Requests(Log({})), store=tmp_path), max_steps=3, resume=True)


def test_events_accepts_actions_sent_by_its_consumer() -> None:
    events = trainer().events(
        STEPS.init_state(0), train_data(), max_steps=9, kinds=(BatchEnd, TrainEnd)
    )
    assert isinstance(next(events), BatchEnd)
    last = events.send([Stop("by hand")])
    assert isinstance(last, TrainEnd)
    assert last.result.reason == "by hand"


def test_trainer_is_immutable_and_gives_equal_runs() -> None:
    made = trainer()
    assert digest(fit(made, epochs=1)) == digest(fit(made, epochs=1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.log_every = 3  # type: ignore[misc]


def test_backward_end_event_contains_gradient_norms_by_layer() -> None:
    def step(state: Any, batch: Any) -> Any:
        return state, {"loss": batch.sum(), "grad_norm/layers.0": torch.tensor(2.0)}

    seen: list[Any] = []

    class Sees:
        def on_backward_end(self, event: Any) -> None:
            seen.append({name: float(x) for name, x in event.norms.items()})

    Trainer(step, [Sees()], compile=False).fit(torch.zeros(1), [torch.ones(1)], epochs=1)
    assert seen == [{"layers.0": 2.0}]
