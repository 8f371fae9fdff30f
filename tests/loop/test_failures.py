"""Test failures of runs: the state is kept, and the message names cause and position."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import Any

import pytest
import torch

import ftrain
from ftrain import checkpoint, tree
from ftrain.core.errors import NonFiniteError
from ftrain.loop import (
    BatchEnd,
    CallbackWarning,
    EpochEnd,
    Failure,
    Log,
    Logged,
    LoopWarning,
    Notice,
    Notify,
    TrainEnd,
    Trainer,
)
from ftrain.loop.callback import EVENTS
from tests.campaign import spread
from tests.loop.runs import STEPS, digest, fit, rows, steps, trainer

BATCHES = [{name: x[8 * i : 8 * i + 8] for name, x in rows().items()} for i in range(6)]
BAD = {
    "x": BATCHES[0]["x"].clone().index_fill_(0, torch.tensor([1]), torch.nan),
    "y": BATCHES[0]["y"],
}


class Raises:
    def __init__(self, n: int, on_error: str = "raise") -> None:
        self.n, self.on_error, self.listens = n, on_error, (BatchEnd,)

    def init(self) -> int:
        return 0

    def __call__(self, state: int, event: Any) -> Any:
        if event.progress.step == self.n:
            raise KeyError("a bug of mine")
        return state + 1, ()


def test_a_failing_callback_fails_the_run_after_a_checkpoint(tmp_path: Any) -> None:
    seen: list[Any] = []

    class Sees:
        def on_batch_end(self, event: Any) -> None:
            seen.append(event.progress.step)

        def on_failure(self, event: Any) -> None:
            seen.append((event.where, type(event.exception).__name__))

        def on_train_end(self, event: Any) -> None:
            seen.append(event.result.status)

    with pytest.raises(KeyError, match="a bug of mine") as found:
        fit(trainer(Raises(4), Sees(), store=tmp_path), epochs=2)
    assert seen == [1, 2, 3, 4, ("callback Raises", "KeyError"), "failed"]
    result = found.value.fit_result  # type: ignore[attr-defined]
    assert result.step == 4
    assert result.checkpoint.endswith("step-000000000004")
    assert any("callback Raises" in note for note in found.value.__notes__)
    again = fit(trainer(store=tmp_path), epochs=2, resume=True)
    assert digest(again) == digest(fit(trainer(), epochs=2))


class Breaks:
    """A callback that raises at the n-th event of a kind, once."""

    def __init__(self, method: str, n: int) -> None:
        self.seen, self.n = 0, n
        setattr(self, method, self._receive)

    def _receive(self, event: Any) -> None:
        self.seen += 1
        if self.seen == self.n:
            raise KeyError("a bug of mine")


def logged(store: Any) -> Any:
    """Return the logged rows and results of a run from its last checkpoint."""
    state, content = checkpoint.Store(store).load(like=STEPS.init_state(0))
    return tree.digest(state), {
        name: content[name] if name != "callbacks" else content[name]["Writes"]
        for name in ("callbacks", "history", "window", "progress", "due", "todo")
    }


class Writes:
    """A custom log that keeps each row without times."""

    def init(self) -> Any:
        return []

    def __call__(self, state: Any, event: Any) -> Any:
        if isinstance(event, BatchEnd) and event.progress.step == 5:
            return state, [Log({"own": torch.tensor(1.5)}), Notify("at step 5")]
        if not isinstance(event, Logged):
            return state, ()
        values = [event.values.get(name) for name in ("loss", "own")]
        return [*state, [event.progress.step, event.split, *values]], ()


@pytest.mark.parametrize(
    ("method", "n"), spread([name for name in EVENTS if name != "on_notice"], [1, 2, 5, 6], 2)
)
def test_a_run_that_failed_in_a_callback_of_any_event_resumes_without_gaps(
    method: str, n: int, tmp_path: Any, uninterrupted: Any
) -> None:
    """Rows, evaluations and results of the failed step occur exactly once."""
    breaks = Breaks(method, n)
    options: Any = {"eval_every": 5, "save_every": 4, "store": tmp_path}
    try:
        fit(trainer(Writes(), breaks, **options), epochs=2)
    except KeyError:
        fit(trainer(Writes(), breaks, **options), epochs=2, resume="auto")
    assert logged(tmp_path) == uninterrupted


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: Any) -> Any:
    store = tmp_path_factory.mktemp("uninterrupted")
    fit(trainer(Writes(), eval_every=5, save_every=4, store=store), epochs=2)
    return logged(store)


def test_a_resumed_run_repeats_a_failed_evaluation(tmp_path: Any) -> None:
    """After the evaluation data are repaired, the resumed run equals an uninterrupted one."""

    def broken(state: Any, batch: Any) -> Any:
        raise OSError("a file is gone")

    whole = fit(trainer(store=tmp_path / "whole"), epochs=2)
    with pytest.raises(OSError, match="a file is gone"):
        fit(trainer(steps=(STEPS.train_step, broken), store=tmp_path / "run"), epochs=2)
    again = fit(trainer(store=tmp_path / "run"), epochs=2, resume=True)
    histories = [[replace(each, duration=None) for each in one.history] for one in (again, whole)]
    assert histories[0] == histories[1]
    assert digest(again) == digest(whole)


def test_a_failing_callback_that_only_warns_does_not_fail_the_run() -> None:
    with pytest.warns(CallbackWarning, match="Raises raised KeyError.*The run continues"):
        result = fit(trainer(Raises(4, "warn")), epochs=1)
    assert result.status == "completed"


def test_a_failing_step_emits_failure_with_the_state_before_it() -> None:
    def step(state: Any, batch: Any) -> Any:
        if int(state.step) == 2:
            raise ZeroDivisionError("in my loss")
        return STEPS.train_step(state, batch)

    events = Trainer(step, compile=False).events(
        STEPS.init_state(0), BATCHES, epochs=1, kinds=(Failure, TrainEnd)
    )
    failure, end = next(events), next(events)
    assert isinstance(failure, Failure)
    assert failure.where == "step"
    assert isinstance(end, TrainEnd)
    assert (end.result.status, end.result.step, end.result.exit_code) == ("failed", 2, 1)
    with pytest.raises(ZeroDivisionError, match="in my loss"):
        next(events)


def test_metrics_that_cannot_be_read_do_not_prevent_the_checkpoint(tmp_path: Any) -> None:
    """A metric that changes its kind fails the run when read; the steps before are saved."""

    def step(state: Any, batch: Any) -> Any:
        new, metrics = STEPS.train_step(state, batch)
        return new, {"loss": ftrain.Sum(metrics["loss"])} if int(new.step) == 5 else metrics

    with pytest.raises(ValueError, match="metric 'loss': expected a Mean.*got a Sum") as found:
        fit(trainer(steps=(step, STEPS.eval_step), store=tmp_path), max_steps=9)
    assert "lacks the metrics since the last row" in "".join(found.value.__notes__)
    result = found.value.fit_result  # type: ignore[attr-defined]
    assert (result.step, int(result.state.step)) == (6, 6)
    assert result.checkpoint.endswith("step-000000000006")
    again = fit(trainer(store=tmp_path), max_steps=9, resume=True)
    assert digest(again) == digest(fit(trainer(), max_steps=9))


def test_a_failing_count_samples_function_keeps_the_state_before_the_step(tmp_path: Any) -> None:
    def count(batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyError("a bug of mine")
        return 8, 0

    calls: list[Any] = []
    with pytest.raises(KeyError) as found:
        fit(trainer(count_samples=count, store=tmp_path), max_steps=9)
    result = found.value.fit_result  # type: ignore[attr-defined]
    assert (result.step, int(result.state.step)) == (2, 2)
    again = fit(trainer(store=tmp_path), max_steps=9, resume=True)
    assert digest(again) == digest(fit(trainer(), max_steps=9))


@pytest.mark.parametrize("method", ["on_compile_begin", "on_compile_end"])
def test_a_run_loses_no_step_if_a_callback_fails_during_compilation(
    method: str, tmp_path: Any
) -> None:
    """Compilation ends after the first step, which must not be repeated."""
    options: Any = {"store": tmp_path, "compile": {"backend": "eager"}}
    with pytest.raises(KeyError) as found:
        fit(trainer(Breaks(method, 1), **options), max_steps=4)
    result = found.value.fit_result  # type: ignore[attr-defined]
    assert result.step == int(result.state.step) == (0 if method == "on_compile_begin" else 1)
    again = fit(trainer(**options), max_steps=4, resume=True)
    assert digest(again) == digest(fit(trainer(compile=options["compile"]), max_steps=4))


def test_an_error_in_the_data_keeps_the_state_of_the_last_step() -> None:
    def data(epoch: int) -> Any:
        yield BATCHES[0]
        yield BATCHES[1]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone") as found:
        trainer().fit(STEPS.init_state(0), data, epochs=1)
    result = found.value.fit_result  # type: ignore[attr-defined]
    assert result.step >= 1
    assert int(result.state.step) == result.step


class Full(checkpoint.Store):
    """A store whose disk is full at given steps."""

    full: tuple[int, ...] = ()

    def save(self, state: Any, *, step: int, **options: Any) -> Any:
        if step in self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().save(state, step=step, **options)


def test_a_full_disk_warns_and_the_run_completes(tmp_path: Any) -> None:
    store = Full(tmp_path)
    store.full = (2, 4)
    with pytest.warns(
        LoopWarning, match="the checkpoint of step 2 could not be written.*No space left"
    ):
        result = fit(trainer(store=store, save_every=2), max_steps=6)
    assert result.status == "completed"
    assert result.checkpoint.endswith("step-000000000006")
    assert digest(result) == digest(fit(trainer(), max_steps=6))


def test_error_of_a_full_disk_at_the_last_save_contains_the_final_state(tmp_path: Any) -> None:
    store = Full(tmp_path)
    store.full = (6,)
    with pytest.warns(LoopWarning), pytest.raises(OSError, match="No space left") as found:
        fit(trainer(store=store, save_every=2), max_steps=6)
    result = found.value.fit_result  # type: ignore[attr-defined]
    assert tree.digest(result.state) == digest(fit(trainer(), max_steps=6))
    assert result.checkpoint.endswith("step-000000000004")


def test_skipped_steps_are_reported_in_a_notice() -> None:
    notices: list[str] = []

    class Sees:
        def on_notice(self, event: Notice) -> None:
            notices.append(event.message)

    result = trainer(Sees(), log_every=6).fit(
        STEPS.init_state(0), [*BATCHES[:3], BAD, *BATCHES[4:]], epochs=1
    )
    assert result.train.metrics["skipped"] == 1
    assert notices == [
        "1 of the last 6 steps were skipped because of non-finite gradients: step 4 (epoch 1, batch 4)"
    ]


def test_too_many_skipped_steps_in_a_row_end_the_run() -> None:
    batches = [*BATCHES[:2], *[BAD] * 4]
    with pytest.warns(LoopWarning), pytest.raises(NonFiniteError) as found:
        trainer(log_every=6, max_skipped=3).fit(STEPS.init_state(0), batches, epochs=1)
    message = str(found.value)
    assert "4 steps in a row" in message
    assert "step 6, batch 6 of epoch 1: batch['x'] holds 4 NaN of 32 values" in message
    good = trainer().fit(STEPS.init_state(0), BATCHES[:2], epochs=1)
    result = found.value.fit_result  # type: ignore[attr-defined]
    assert tree.digest(result.state.params) == tree.digest(good.state.params)


@pytest.mark.parametrize(
    ("offset", "factor", "operator"),
    [(-1e6, 1.0, "aten.sqrt"), (1e6, float("nan"), "aten.mul")],
)
def test_the_first_operator_with_a_non_finite_result_is_named(
    offset: float, factor: float, operator: str
) -> None:
    def loss_fn(model: Any, batch: Any) -> Any:
        return (torch.sqrt(model(batch["x"]) + offset) * factor).mean()  # the named line

    bad = ftrain.make_steps(lambda: torch.nn.Linear(4, 1), loss_fn, ftrain.optim.sgd(0.1))
    with pytest.warns(LoopWarning), pytest.raises(NonFiniteError, match=operator) as found:
        Trainer(bad, compile=False, max_skipped=1, log_every=1).fit(
            bad.init_state(0), BATCHES, epochs=1
        )
    assert "test_failures.py" in str(found.value)
    assert "the named line" in str(found.value)


@pytest.mark.parametrize("compiled", [False, {"backend": "eager"}])
def test_a_step_that_raises_on_non_finite_gradients_keeps_the_state_before_it(
    compiled: Any,
) -> None:
    """With `nonfinite="raise"`, also for a donated state."""
    with pytest.raises(NonFiniteError, match="non-finite gradient at step 2") as found:
        Trainer(steps(nonfinite="raise"), compile=compiled).fit(
            STEPS.init_state(0), [*BATCHES[:2], BAD], epochs=1
        )
    notes = "\n".join(found.value.__notes__)
    assert "At step 3, batch 3 of epoch 1: batch['x'] holds 4 NaN of 32 values" in notes
    result = found.value.fit_result  # type: ignore[attr-defined]
    assert int(result.state.step) == 2


def test_a_callback_that_finds_the_disk_full_names_the_disk_in_its_remedy() -> None:
    class Writes:
        on_error = "warn"
        listens = (EpochEnd,)

        def init(self) -> None:
            return None

        def __call__(self, state: None, event: Any) -> Any:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "curves.png")

    with pytest.warns(
        CallbackWarning, match="The run continues. The disk is full: free some space"
    ):
        fit(trainer(Writes()), epochs=1)
