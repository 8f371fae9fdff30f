"""Test when and how a callback learns that the metric which it monitors does not exist."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

import ftrain
from ftrain import data
from ftrain.core._torch import FakeTensor
from ftrain.loop import Trainer, callbacks
from ftrain.loop._batches import EpochFunction
from tests.loop.runs import STEPS, eval_data, fit, rows, train_data, trainer


@pytest.mark.parametrize(
    ("make", "monitor", "options", "at", "said"),
    [
        # Before the first step, because the evaluation data can be read then without side effects.
        ("stop", "eval/acuracy", {"compile": True}, 0, "Did you mean 'eval/accuracy'?"),
        ("save", "eval/acuracy", {"compile": True}, 0, "Write one of eval/loss, eval/accuracy"),
        ("stop", "eval/acuracy", {}, 0, "Did you mean 'eval/accuracy'?"),
        # Training metrics are known at the end of the first log window.
        ("save", "train/lose", {}, 3, "Did you mean 'train/loss'?"),
        ("stop", "train/lose", {"compile": True}, 3, "Write one of train/loss, train/accuracy"),
    ],
)
@pytest.mark.filterwarnings("ignore::ftrain.core.errors.RecompileWarning")
def test_an_unknown_eval_metric_is_refused_at_step_0_and_a_train_metric_after_the_first_window(
    make: str, monitor: str, options: Any, at: int, said: str
) -> None:
    watch = (
        callbacks.EarlyStopping(3, monitor=monitor)
        if make == "stop"
        else callbacks.Checkpointing(best=1, monitor=monitor)
    )
    if options:
        options = {"compile": {"backend": "eager"}}
    evaluated = []

    class Counts:
        def on_evaluate_end(self, event: Any) -> None:
            evaluated.append(event.progress.step)

    with pytest.raises(ValueError, match="unknown metric") as error:
        fit(trainer(Counts(), watch, **options), epochs=3)
    assert said in str(error.value)
    assert error.value.fit_result.step == at  # type: ignore[attr-defined]  # the trainer's
    assert not evaluated


def test_an_unknown_metric_is_refused_at_the_first_evaluation_if_eval_data_is_a_stream() -> None:
    made = trainer(callbacks.EarlyStopping(3, monitor="eval/acuracy"))
    with pytest.raises(ValueError, match="unknown metric") as error:
        made.fit(STEPS.init_state(0), train_data(), data.Stream(list(eval_data())), epochs=3)
    assert error.value.fit_result.step == 7  # type: ignore[attr-defined]  # the trainer's


def test_checking_a_monitored_name_by_a_trial_evaluation_has_no_side_effects() -> None:
    """The trial changes neither tensors nor torch's generators, and its errors are ignored."""
    kept: list[torch.Tensor] = []

    def step(state: torch.Tensor, batch: Any) -> Any:
        return state + torch.rand(()), {"loss": state.sum()}

    def eval_step(state: torch.Tensor, batch: Any) -> Any:
        kept.append(torch.rand(()))
        return {"loss": state.sum()}

    def fails(state: torch.Tensor, batch: Any) -> Any:
        raise ZeroDivisionError

    found = []
    for watched in ([], [callbacks.EarlyStopping(9)]):
        torch.manual_seed(0)
        made = trainer(*watched, steps=(step, eval_step))
        found.append(made.fit(torch.zeros(3), [torch.ones(1)] * 4, [torch.ones(1)], epochs=2).state)
    assert torch.equal(*found)
    assert len(kept) == 2 + 3
    assert not any(isinstance(each, FakeTensor) for each in kept)
    made = trainer(callbacks.EarlyStopping(9), steps=(step, fails))
    with pytest.raises(ZeroDivisionError) as error:
        made.fit(torch.zeros(3), [torch.ones(1)] * 4, [torch.ones(1)], epochs=2)
    assert error.value.fit_result.step == 4  # type: ignore[attr-defined]  # the trainer's


@pytest.mark.parametrize(
    "monitor",
    [
        "eval/loss",
        "eval/accuracy",
        "eval/duration",
        "eval/other/loss",
        "train/loss",
        "train/grad_norm_min",
        "train/samples_per_second",
    ],
)
@pytest.mark.filterwarnings("ignore:early stopping had no effect")
@pytest.mark.filterwarnings("ignore::ftrain.core.errors.RecompileWarning")
def test_every_metric_of_a_run_can_be_monitored(monitor: str) -> None:
    made = trainer(callbacks.EarlyStopping(9, monitor=monitor), compile={"backend": "eager"})
    assert fit(made, epochs=2).status == "completed"


@pytest.mark.filterwarnings("ignore::ftrain.core.errors.RecompileWarning")
def test_a_metric_whose_value_reads_tensors_on_the_host_can_be_monitored() -> None:
    """The trial evaluation of a compiled step runs on fake tensors, whose values cannot be read."""

    class Read(NamedTuple):
        total: torch.Tensor

        @property
        def value(self) -> torch.Tensor:
            return torch.tensor(float(self.total))

        def merge(self, other: Any) -> Any:
            return Read(self.total + other.total)

    def evaluation(state: Any, batch: Any) -> Any:
        return {"loss": batch["x"].mean(), "read": Read(batch["x"].sum())}

    pair = (STEPS.train_step, ftrain.compile(evaluation, backend="eager"))
    made = Trainer(pair, [callbacks.EarlyStopping(5)], compile=False)
    found = made.fit(STEPS.init_state(0), train_data(), eval_data(), max_steps=1)
    assert found.eval.metrics["read"] == pytest.approx(float(rows(seed=1)["x"].sum()), rel=1e-5)


def test_checking_a_monitored_name_does_not_consume_single_pass_data() -> None:
    looked = []

    def batches(epoch: int) -> Any:
        looked.append(epoch)
        return iter(eval_data())

    made = trainer(callbacks.EarlyStopping(9), compile={"backend": "eager"})
    made.fit(STEPS.init_state(0), train_data(), data.Stream(EpochFunction(batches)), max_steps=5)
    assert looked == [0]
