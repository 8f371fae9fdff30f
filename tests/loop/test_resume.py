"""Test that a run interrupted anywhere and resumed equals an uninterrupted one."""

from __future__ import annotations

import json
import pathlib
import signal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import checkpoint, data, tree
from ftrain.core.errors import ArgumentError
from ftrain.loop import (
    BatchEnd,
    EpochEnd,
    Evaluate,
    EvaluateBegin,
    EvaluateEnd,
    LoopState,
    Notify,
    Save,
    TrainBegin,
    WindowEnd,
)
from tests.campaign import product
from tests.loop.runs import STEPS, Counts, Interrupts, digest, fit, rows, train_data, trainer

# The resumed run lacks the callback that interrupted it, which issues a warning.
pytestmark = pytest.mark.filterwarnings("ignore::ftrain.loop.CallbackWarning")

OPTIONS: list[dict[str, Any]] = [
    {},
    {"eval_every": 4, "save_every": 5},
    {"log_every": 4, "accumulate": 3},
]


def whole(store: pathlib.Path) -> Any:
    """Return the metadata of the newest checkpoint."""
    latest = checkpoint.Store(store).latest()
    assert latest is not None
    return json.loads((latest / "manifest.json").read_text())["metadata"]


@pytest.fixture(scope="module", params=range(len(OPTIONS)))
def uninterrupted(request: Any, tmp_path_factory: Any) -> Any:
    options = OPTIONS[request.param]
    store = tmp_path_factory.mktemp("whole")
    result = fit(trainer(Counts(), store=store, **options), epochs=3)
    assert result.status == "completed"
    return options, result, whole(store)


@pytest.mark.parametrize(
    ("kind", "number", "n"),
    product(
        [BatchEnd, WindowEnd, EpochEnd, EvaluateBegin, EvaluateEnd],
        [signal.SIGINT, signal.SIGTERM],
        [1, 2],
    ),
)
def test_a_run_interrupted_in_any_event_and_resumed_equals_an_uninterrupted_one(
    uninterrupted: Any, kind: Any, number: int, n: int, tmp_path: pathlib.Path
) -> None:
    options, result, metadata = uninterrupted
    first = fit(trainer(Counts(), Interrupts(number, kind, n), store=tmp_path, **options), epochs=3)
    assert first.status == "interrupted"
    assert first.signal == number
    assert first.exit_code == 128 + number
    second = fit(trainer(Counts(), store=tmp_path, **options), epochs=3, resume=True)
    assert second.status == "completed"
    assert digest(second) == digest(result)
    again = whole(tmp_path)
    again["callbacks"].pop("Interrupts", None)
    assert again == metadata
    strip = [[each.to_json(clock=False) for each in r.history] for r in (second, result)]
    assert strip[0] == strip[1]


class EvaluatesZeros:
    """A callback that requests evaluations after step 5: of the state, then of a state of zeros."""

    listens = (BatchEnd,)

    def init(self) -> Any:
        return None

    def __call__(self, state: Any, event: Any) -> Any:
        if event.progress.step != 5:
            return state, ()
        params = tree.map(lambda p: 0 * p, event.state.params)
        return state, [Evaluate(), Evaluate(event.state.replace(params=params), "zeros")]


def test_pending_evaluations_of_another_state_finish_before_a_signal_ends_the_run(
    tmp_path: pathlib.Path,
) -> None:
    """A checkpoint cannot store a pending evaluation of another state."""
    whole_run = fit(trainer(EvaluatesZeros()), max_steps=8)
    interrupts = Interrupts(signal.SIGTERM, EvaluateBegin, 1)
    first = fit(trainer(EvaluatesZeros(), interrupts, store=tmp_path), max_steps=8)
    assert (first.status, first.exit_code) == ("interrupted", 143)
    assert [each.split for each in first.history[:2]] == ["eval", "eval/zeros"]
    second = fit(trainer(EvaluatesZeros(), store=tmp_path), max_steps=8, resume=True)
    strip = [[each.to_json(clock=False) for each in r.history] for r in (second, whole_run)]
    assert strip[0] == strip[1]


@settings(max_examples=8, deadline=None)
@given(stops=st.lists(st.integers(1, 5), max_size=4))
def test_a_run_resumed_many_times_equals_an_uninterrupted_one(
    stops: list[int], tmp_path_factory: Any
) -> None:
    store = tmp_path_factory.mktemp("pieces")
    expected = fit(trainer(Counts()), max_steps=20)
    at = 0
    for more in stops:
        at = min(at + more, 20)
        made = trainer(Counts(), Interrupts(signal.SIGINT, BatchEnd, more), store=store)
        fit(made, max_steps=20, resume="auto")
    result = fit(trainer(Counts(), store=store), max_steps=20, resume="auto")
    assert digest(result) == digest(expected)
    assert result.status == "completed"


def test_resuming_a_stopped_run_keeps_it_stopped(tmp_path: pathlib.Path) -> None:
    made = trainer(Counts(stop_after=2), store=tmp_path)
    result = fit(made, epochs=5)
    assert (result.status, result.reason, result.epoch) == ("stopped", "enough", 2)
    again = fit(made, epochs=5, resume=True)
    assert (again.status, again.reason, again.step) == ("stopped", "enough", result.step)
    assert digest(again) == digest(result)


def test_resume_true_requires_a_checkpoint_and_resume_auto_does_not(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="expected a trainer with a store"):
        fit(trainer(), epochs=1, resume=True)
    with pytest.raises(checkpoint.CheckpointNotFoundError):
        fit(trainer(store=tmp_path), epochs=1, resume=True)
    assert fit(trainer(store=tmp_path), epochs=1, resume="auto").status == "completed"


def test_resume_refuses_a_checkpoint_that_no_trainer_saved(tmp_path: pathlib.Path) -> None:
    from tests.loop.runs import STEPS

    checkpoint.save(tmp_path / "plain", STEPS.init_state(0), metadata={"mine": 1})
    with pytest.raises(ValueError, match="cannot be resumed by a Trainer"):
        fit(trainer(), epochs=1, resume=tmp_path / "plain")


@pytest.mark.parametrize("options", [*OPTIONS, {"eval_every": 4, "save_every": 7}])
def test_trained_weights_do_not_depend_on_when_checkpoints_are_saved(
    options: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """With time-based checkpoints, the clock chooses the steps, including the last one."""

    class SavesAt:
        listens = (BatchEnd,)

        def __init__(self, step: int) -> None:
            self.step = step

        def init(self) -> Any:
            return None

        def __call__(self, state: Any, event: Any) -> Any:
            return state, [Save("time")] if event.progress.step == self.step else ()

    found = {}
    for step in range(15):
        store = tmp_path / str(step)
        result = fit(trainer(Counts(), SavesAt(step), store=store, **options), epochs=2)
        found[step] = whole(store)
        assert result.eval.step == result.step
        assert found[step]["history"] == [each.to_json(clock=False) for each in result.history]
    assert all(one == found[0] for one in found.values())


def test_fit_refuses_a_store_that_contains_another_run(tmp_path: pathlib.Path) -> None:
    """Otherwise the checkpoints of two runs would mix, and a resume could continue the wrong run."""
    store = checkpoint.Store(tmp_path)
    state = STEPS.init_state(0)
    trainer(store=store).fit(state, train_data(), epochs=1)
    kept = store.steps()
    with pytest.raises(ValueError, match=r"with a run up to step \d+.*resume=True"):
        trainer(store=store).fit(STEPS.init_state(1), train_data(), epochs=1)
    assert store.steps() == kept
    trainer(store=store).fit(state, train_data(), epochs=2, resume=True)


def test_an_action_named_note_in_an_old_checkpoint_loads_as_notify() -> None:
    content = {**LoopState(None).metadata(), "todo": [["Note", {"message": "step 5"}]]}
    assert LoopState.from_metadata(None, content).pending == (Notify("step 5"),)


def test_loop_state_replace_refuses_unknown_fields() -> None:
    state = LoopState(None)
    assert state.replace(accumulate=3) == LoopState(None, accumulate=3)
    with pytest.raises(TypeError, match="expected names of fields of LoopState, got step"):
        state.replace(step=3)
    assert state == LoopState(None)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: data.Loader(rows(90), 8, seed=3), "the checkpoint, 60 samples, got 90 samples"),
        (
            lambda: train_data(shuffle=False),
            "the order of the data of the checkpoint, shuffle=True",
        ),
        (lambda: [rows()], "the checkpoint, 60 samples, got a list of 1 batches"),
        (lambda: data.Stream([rows()]), "the checkpoint, 60 samples, got a stream of 1"),
    ],
)
def test_resuming_with_other_data_is_refused_before_any_callback_sees_an_event(
    other: Any, message: str, tmp_path: pathlib.Path
) -> None:
    fit(trainer(store=tmp_path, save_every=1), max_steps=4)
    made = trainer(Interrupts(signal.SIGINT, TrainBegin, 1), store=tmp_path)
    with pytest.raises(ArgumentError, match=f"train_data: expected .*{message}") as refused:
        made.fit(STEPS.init_state(0), other(), epochs=3, resume=True)
    assert not hasattr(refused.value, "fit_result")
