"""Test the notice about a loss that is NaN because a batch or micro-batch has no label."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim
from ftrain.loop import Notice, TrainEnd, Trainer

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
HALF = {"x": X, "y": torch.tensor([0, 1, 2, 0, -100, -100, -100, -100])}
FULL = {"x": X, "y": torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])}
NONE = {"x": X, "y": torch.full((8,), -100)}


def mean_loss(model: nn.Module, batch: Any) -> Any:
    n = (batch["y"] != -100).sum()
    return ftrain.Mean(F.cross_entropy(model(batch["x"]), batch["y"]) * n, n)


def sum_loss(model: nn.Module, batch: Any) -> Any:
    n = (batch["y"] != -100).sum()
    return ftrain.Mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"), n)


def notices(loss_fn: Any, train: Any, held_out: Any = None, **options: Any) -> list[str]:
    steps = ftrain.make_steps(lambda: nn.Linear(3, 3), loss_fn, optim.sgd(0.1), **options)
    trainer = Trainer(steps, compile=False, log_every=1)
    events = trainer.events(
        steps.init_state(0), [train] * 3, held_out and [held_out], epochs=2, kinds=(Notice,)
    )
    return [event.message for event in events]


def test_micro_batch_without_labels_is_reported_once_with_the_remedy() -> None:
    (message,) = notices(mean_loss, HALF, accumulate=2)
    assert message.startswith("the training loss is NaN although its gradients are finite. ")
    assert "Write Mean(total, n) with the sum of the losses" in message


def test_evaluation_batch_without_labels_is_reported_once() -> None:
    (message,) = notices(mean_loss, FULL, NONE)
    assert message.startswith("the evaluation loss is NaN although the parameters are finite. ")


def test_loss_as_a_sum_over_labels_emits_no_notice() -> None:
    assert notices(sum_loss, HALF, FULL, accumulate=2) == []
    assert notices(mean_loss, FULL, FULL, accumulate=2) == []


def test_skipped_steps_and_nan_parameters_emit_no_notice_about_missing_labels() -> None:
    assert not [each for each in notices(sum_loss, NONE) if "no label" in each]
    diverged = {"x": X * float("nan"), "y": FULL["y"]}
    found = notices(sum_loss, diverged, FULL, nonfinite="ignore")
    assert not [each for each in found if "no label" in each]


def test_non_finite_evaluation_batch_is_named_instead_of_missing_labels() -> None:
    bad = {"x": X.clone().index_fill_(0, torch.tensor(2), float("nan")), "y": FULL["y"]}
    steps = ftrain.make_steps(lambda: nn.Linear(3, 3), mean_loss, optim.sgd(0.1))
    held_out = Reads([FULL, bad])
    trainer = Trainer(steps, compile=False)
    events = trainer.events(steps.init_state(0), [FULL], held_out, epochs=3, kinds=(Notice,))
    (message,) = [event.message for event in events]
    assert "no label" not in message
    assert "batch['x'] (batch 1) holds 3 NaN of 24 values. Correct these values" in message
    assert held_out.passes == 4  # three evaluations and one search for the NaN


class Reads(list[Any]):
    """Batches that count the passes over them."""

    passes = 0

    def __getitem__(self, i: Any) -> Any:
        self.passes += i == 0
        return super().__getitem__(i)

    def __iter__(self) -> Any:
        self.passes += 1
        return super().__iter__()


def test_run_that_skipped_every_step_names_the_non_finite_input_in_a_notice() -> None:
    steps = ftrain.make_steps(lambda: nn.Linear(3, 3), mean_loss, optim.sgd(0.1))
    trainer = Trainer(steps, compile=False)
    bad = {"x": X * float("inf"), "y": FULL["y"]}
    events = list(
        trainer.events(steps.init_state(0), [bad] * 3, epochs=1, kinds=(Notice, TrainEnd))
    )
    whole = (
        "3 of 3 steps were skipped because of non-finite gradients, and no parameter was trained"
    )
    messages = [event.message for event in events if isinstance(event, Notice)]
    assert any(each.startswith(f"{whole}. batch['x'] holds 24 infinite of 24") for each in messages)
    assert whole in str(events[-1].result)


def test_non_finite_training_batch_is_named_if_the_gradients_are_finite() -> None:
    def detached_loss(model: nn.Module, batch: Any) -> Any:
        return model(torch.ones(2, 3)).sum() + batch["x"].sum()

    (message,) = notices(detached_loss, {"x": X * float("nan"), "y": FULL["y"]})
    assert "batch['x'] holds 24 NaN of 24 values" in message
