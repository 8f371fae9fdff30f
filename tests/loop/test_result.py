"""Test the best epoch of a run's result, and its report of skipped steps."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import pytest
import torch

from ftrain.loop import EpochResult, FitResult
from tests.loop.runs import STEPS, rows, trainer


def result(losses: list[float], split: str = "eval", **options: Any) -> FitResult:
    history = [EpochResult(split, e, 9 * e, {"loss": x}, 8, 0) for e, x in enumerate(losses, 1)]
    return FitResult(None, tuple(history), "completed", **options)


@pytest.mark.parametrize(
    ("losses", "mode", "epoch"),
    [
        ([3.0, 1.0, 2.0], "min", 2),
        ([3.0, 1.0, 2.0], "max", 1),
        ([math.nan, 2.0, 1.0], "min", 3),
        ([2.0, 1.0, 1.0], "min", 2),
        ([math.inf, math.nan], "min", 1),
    ],
)
def test_best_epoch_has_the_best_value(
    losses: list[float], mode: Literal["min", "max"], epoch: int
) -> None:
    best = result(losses).best("eval/loss", mode)
    assert best is not None
    assert best.epoch == epoch


def test_best_epoch_is_none_if_no_epoch_has_a_value() -> None:
    assert result([math.nan]).best() is None
    assert result([1.0]).best("eval/accuracy") is None
    assert result([1.0], "train").best() is None
    assert result([]).best() is None


def test_best_epoch_can_be_chosen_by_a_named_evaluation() -> None:
    ema = result([2.0, 1.0], "eval/ema")
    assert ema.best("eval/loss") is None
    best = ema.best("eval/ema/loss")
    assert best is not None
    assert best.epoch == 2


def test_printed_result_of_an_evaluation_outside_of_a_run_has_no_epoch() -> None:
    assert str(EpochResult("eval", 0, 30, {"loss": 0.5}, 8, 0)) == "step 30  eval  loss 0.5"
    assert str(EpochResult("eval", 2, 30, {"loss": 0.5}, 8, 0)).startswith("epoch 2  step 30")


def batches(bad: int, n: int = 8) -> list[dict[str, torch.Tensor]]:
    found = [{name: x[8 * i % 56 :][:4] for name, x in rows().items()} for i in range(n)]
    return [
        {**batch, "x": batch["x"] * math.nan} if i < bad else batch for i, batch in enumerate(found)
    ]


@pytest.mark.parametrize(
    ("bad", "printed", "noted"), [(0, False, False), (2, True, False), (7, True, True)]
)
def test_printed_result_names_the_number_of_skipped_steps(
    bad: int, printed: bool, noted: bool
) -> None:
    """Under loss scaling, a run with 86 of 88 steps skipped once ended without a message."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outcome = trainer(log_every=100).fit(STEPS.init_state(0), batches(bad), epochs=2)
    assert (outcome.status, outcome.skipped) == ("completed", 2 * bad)
    why = "because of non-finite gradients, and did not change the parameters"
    message = f"{2 * bad} of 16 steps were skipped {why}"
    assert (f"  {message}" in str(outcome).splitlines()) == printed
    noted_at_end = f"{message}. Check the loss and its inputs." in [str(x.message) for x in said]
    assert noted_at_end == noted
