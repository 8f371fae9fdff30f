"""Test errors for metrics of torchmetrics in a step, each of which names the remedy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim
from ftrain.tasks import metrics

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")

from tests.tasks.test_torchmetrics import CLASSES, Extremes, batch, loss_of  # noqa: E402


class SetsMore(Extremes):
    def update(self, x: Tensor) -> None:
        super().update(x)
        self.mode = "seen"


class OfMeans(Extremes):
    def __init__(self) -> None:
        super().__init__()
        self.add_state("mean", torch.tensor(0.0), dist_reduce_fx="mean")


class FillsNothing(Extremes):
    def __init__(self) -> None:
        super().__init__()
        self.add_state("rest", [], dist_reduce_fx="cat")


X, Y = torch.zeros(2, CLASSES), torch.tensor([0, 1])


def accuracy_of(preds: Tensor, target: Tensor) -> Tensor:
    return (preds.argmax(1) == target).float().mean()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: metrics.from_torchmetrics(3), "metric: expected a torchmetrics.Metric or a func"),
        (
            lambda: metrics.from_torchmetrics(torchmetrics.MetricCollection([Extremes()])),
            "got MetricCollection. Pass one metric; for",
        ),
        (
            lambda: metrics.from_torchmetrics(torchmetrics.MeanSquaredError),
            "got the class MeanSquaredError",
        ),
        (
            lambda: metrics.from_torchmetrics(OfMeans(), keep="states"),
            "state 'mean' that is reduced by dim_zero_mean, not by sum, max, min or cat. Write keep=",
        ),
        (
            lambda: metrics.from_torchmetrics(FillsNothing(), keep="states")(X),
            "appends nothing to rest. Write from_torchmetrics.*keep='inputs'",
        ),
        (
            lambda: metrics.from_torchmetrics(accuracy_of)(X, Y).merge(
                metrics.from_torchmetrics(accuracy_of)(X, target=Y)
            ),
            r"accuracy_of: expected the same arguments .*, got 2 and \[\] merged with 1 and \['target'",
        ),
        (
            lambda: metrics.from_torchmetrics(torchmetrics.PearsonCorrCoef(), keep="states"),
            "does not have full_state_update = False",
        ),
        (
            lambda: metrics.from_torchmetrics(
                torchmetrics.ClasswiseWrapper(torchmetrics.classification.MulticlassRecall(3)),
                keep="states",
            ),
            "contains other metrics",
        ),
        (
            lambda: metrics.from_torchmetrics(torch.sum, keep="states"),
            "expected 'inputs' for the function sum, which has no states",
        ),
        (
            lambda: metrics.from_torchmetrics(SetsMore(), keep="states")(X),
            "sets only the states of the metric, got one that also sets mode. Write .*keep='inputs'",
        ),
        (
            lambda: metrics.from_torchmetrics(torchmetrics.text.WordErrorRate())(["a"], ["b"]),
            "WordErrorRate: expected tensors, got a list as argument 0.*outside of the step",
        ),
        (lambda: metrics.from_torchmetrics(torch.sum)(), "got no argument"),
        (
            lambda: metrics.from_torchmetrics(torch.sum, keep="state"),  # type: ignore[arg-type]
            "keep: expected 'inputs' or 'states', got 'state'",
        ),
        (
            lambda: metrics.from_torchmetrics(torch.dot)(torch.ones(2), torch.ones(3)),
            r"one row for each sample.*got shapes \(2,\), \(3,\)",
        ),
        (
            lambda: metrics.from_torchmetrics(lambda x, y: {"a": x.sum()})(X, Y).value,
            "expected a value that is a tensor, got 'a'. Choose an entry",
        ),
        (
            lambda: metrics.from_torchmetrics(lambda x, y: {"a": x.sum()}, output="b")(X, Y).value,
            "expected an entry of the value of <lambda>, .'a'., got 'b'",
        ),
    ],
)
def test_error_for_an_unsupported_torchmetrics_metric_or_argument_names_the_remedy(
    call: Any, says: str
) -> None:
    with pytest.raises((TypeError, ValueError, KeyError), match=says):
        call()


def test_compiled_steps_refuse_metrics_that_read_values_and_name_the_line() -> None:
    f1 = torchmetrics.classification.MulticlassF1Score(CLASSES)
    checked = metrics.from_torchmetrics(f1, keep="states")
    steps = ftrain.make_steps(
        lambda: nn.Linear(4, CLASSES), loss_of({"f1": checked}), optim.sgd(0.1)
    )
    with pytest.raises(ftrain.errors.TraceError, match="torchmetrics"):
        ftrain.compile(steps.train_step, backend="eager")(steps.init_state(0), batch(0))
