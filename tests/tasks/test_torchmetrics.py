"""Test that metrics of torchmetrics in steps have the metric's own value for any split of the rows."""

from __future__ import annotations

import functools
import itertools
import math
import pathlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import data, optim, testing
from ftrain.checkpoint import Store
from ftrain.loop import Trainer
from ftrain.tasks import functional, metrics
from ftrain.tasks.metrics.from_torchmetrics import _obstacle

torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
segmentation = pytest.importorskip("torchmetrics.segmentation")

N, CLASSES = 12, 3
seeds = st.integers(0, 10_000)
quiet = pytest.mark.filterwarnings("ignore::UserWarning")  # of classes without rows

# Arguments that a class needs beside those of its task.
NEEDED: dict[str, dict[str, Any]] = {
    "FBetaScore": {"beta": 2.0},
    "PrecisionAtFixedRecall": {"min_recall": 0.5},
    "RecallAtFixedPrecision": {"min_precision": 0.5},
    "SensitivityAtSpecificity": {"min_specificity": 0.5},
    "SpecificityAtSensitivity": {"min_sensitivity": 0.5},
    "MinkowskiDistance": {"p": 3},
    "CriticalSuccessIndex": {"threshold": 0.5},
}
TASKS: dict[str, dict[str, Any]] = {
    "Binary": {},
    "Multiclass": {"num_classes": CLASSES},
    "Multilabel": {"num_labels": CLASSES},
}
#: Other arguments, or arguments of another kind than predictions and targets.
LEFT_OUT = {"BinaryFairness", "BinaryGroupStatRates", "JensenShannonDivergence", "KLDivergence"}


def listed() -> dict[str, Any]:
    """Return the metrics of classification and regression, by name."""
    found = {}
    for package, tasks in (
        (torchmetrics.classification, TASKS),
        (torchmetrics.regression, {"": {}}),
    ):
        for name, task in itertools.product(package.__all__, tasks):
            if name.startswith(task) and name not in LEFT_OUT:
                own = NEEDED.get(name.removeprefix(task), {})
                if package is torchmetrics.regression or name != task:
                    found[name] = functools.partial(getattr(package, name), **tasks[task], **own)
    return found


METRICS = listed()


def rows(name: str, seed: int, n: int = N) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    if name.startswith("Multiclass"):
        preds = torch.randn(n, CLASSES, generator=draws).double().softmax(1)
        return preds, torch.randint(0, CLASSES, (n,), generator=draws)
    shape = (n, CLASSES) if name.startswith("Multilabel") else (n,)
    if name == "ContinuousRankedProbabilityScore":
        return torch.rand(n, 4, generator=draws).double(), torch.rand(n, generator=draws).double()
    if name == "CosineSimilarity":
        return (torch.rand(n, 4, generator=draws).double() for _ in range(2))  # type: ignore[return-value]
    preds = torch.rand(shape, generator=draws).double()
    if name.startswith("Bin") or name.startswith("Multi"):
        return preds, torch.randint(0, 2, shape, generator=draws)
    return preds + 0.1, torch.rand(shape, generator=draws).double() + 0.1


def merged(call: Any, parts: Any) -> Any:
    return functools.reduce(lambda a, b: a.merge(b), (call(*part) for part in parts))


def split(args: tuple[Tensor, ...], cuts: set[int]) -> list[tuple[Tensor, ...]]:
    edges = [0, *sorted(cuts), len(args[0])]
    return [tuple(x[a:b] for x in args) for a, b in itertools.pairwise(edges)]


@quiet
@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=4)
@given(cuts=st.sets(st.integers(1, N - 1), max_size=3), seed=seeds)
def test_merged_torchmetrics_values_equal_the_metric_of_all_rows(
    name: str, cuts: set[int], seed: int
) -> None:
    made, args = METRICS[name]().set_dtype(torch.float64), tuple(rows(name, seed))
    whole = METRICS[name]().set_dtype(torch.float64)
    whole.update(*args)
    expected = whole.compute()
    for i, want in enumerate([expected] if isinstance(expected, Tensor) else expected):
        output = None if isinstance(expected, Tensor) else i
        if not isinstance(want, Tensor):  # a list of curves, of different lengths
            with pytest.raises(TypeError, match="expected a value that is a tensor, got a list"):
                _ = metrics.from_torchmetrics(made, output=output)(*args).value
            continue
        for keep in ("inputs", "states") if _obstacle(made) is None else ("inputs",):
            call = metrics.from_torchmetrics(made, keep=keep, output=output)  # type: ignore[arg-type]
            found = merged(call, split(args, cuts)).value
            # Some sums are in float32.
            assert torch.allclose(found, want, rtol=1e-6, atol=1e-6, equal_nan=True), keep


@quiet
def test_states_of_most_metrics_of_classification_and_regression_merge() -> None:
    assert len(METRICS) > 90
    assert {name for name, make in METRICS.items() if _obstacle(make())} == {
        "ConcordanceCorrCoef",
        "CriticalSuccessIndex",
        "KendallRankCorrCoef",
        "MultilabelRankingLoss",
        "NormalizedRootMeanSquaredError",
        "PearsonCorrCoef",
    }


@settings(max_examples=10)
@given(cuts=st.sets(st.integers(1, N - 1), max_size=3), seed=seeds)
def test_functions_of_torchmetrics_are_exact_over_any_split(cuts: set[int], seed: int) -> None:
    args = rows("Multiclass", seed)
    options = {"task": "multiclass", "num_classes": CLASSES, "average": "macro"}
    function = functools.partial(torchmetrics.functional.f1_score, **options)
    call = metrics.from_torchmetrics(function)
    assert torch.equal(merged(call, split(args, cuts)).value, function(*args))


def test_metrics_without_mergeable_states_are_exact_because_their_inputs_are_kept() -> None:
    labels, found = (torch.randint(0, CLASSES, (N, 4, 4)) for _ in range(2))
    miou = segmentation.MeanIoU(CLASSES, per_class=True, input_format="index")
    mrr, indexes = torchmetrics.retrieval.RetrievalMRR(), torch.arange(N) // 3
    preds, target = torch.rand(N), torch.randint(0, 2, (N,))
    pearson = torchmetrics.PearsonCorrCoef()
    cuts = {1, 5}
    for metric, args in (
        (miou, (found, labels)),
        (mrr, (preds, target, indexes)),
        (pearson, (preds, preds + torch.rand(N))),
    ):
        call = metrics.from_torchmetrics(metric)
        whole = merged(call, split(args, cuts))
        metric.update(*args)
        assert torch.allclose(whole.value, metric.compute(), rtol=1e-6)
        metric.reset()
    one = merged(lambda *x: metrics.from_torchmetrics(mrr)(*x[:2], indexes=x[2]),
                 split((preds, target, indexes), cuts))  # fmt: skip
    assert torch.equal(one.value, mrr(preds, target, indexes=indexes))


class Extremes(torchmetrics.Metric):  # type: ignore[misc]  # torchmetrics may be missing
    """A user's metric with a state of each kind that merges, which start at other values than zero."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor([1.0, 2.0]), dist_reduce_fx="sum")
        self.add_state("largest", torch.tensor(-math.inf), dist_reduce_fx="max")
        self.add_state("smallest", torch.tensor(math.inf), dist_reduce_fx="min")
        self.add_state("seen", [], dist_reduce_fx="cat")

    def update(self, x: Tensor) -> None:
        self.total += x.sum()
        self.largest = torch.maximum(self.largest, x.max())
        self.smallest = torch.minimum(self.smallest, x.min())
        self.seen.append(x)

    def compute(self) -> Tensor:
        seen = torch.cat(self.seen)
        return torch.cat(
            [self.total, torch.stack([self.largest, self.smallest, seen[0], seen[-1]])]
        )


def test_states_merge_by_sum_max_min_and_concatenation() -> None:
    x = torch.arange(6.0)
    call = metrics.from_torchmetrics(Extremes(), keep="states")
    found = merged(call, split((x,), {2, 3}))
    assert found.value.tolist() == [16, 17, 5, 0, 0, 5]
    assert set(found.states) == {"total", "largest", "smallest", "seen"}
    assert int(found.updates) == 3


def test_metric_whose_update_averages_a_batch_is_exact_because_its_inputs_are_kept() -> None:
    class OfBatches(Extremes):
        def update(self, x: Tensor) -> None:
            super().update(x)
            self.total += x.mean()  # a mean of each batch

    x, metric = torch.arange(6.0), OfBatches()
    metric.update(x)
    found = merged(metrics.from_torchmetrics(metric), split((x,), {1}))
    assert torch.equal(found.value, metric.compute())


def loss_of(found: dict[str, Any]) -> Any:
    def loss_fn(model: nn.Module, batch: Any) -> Any:
        logits = model(batch["x"])
        values = {name: call(logits, batch["y"]) for name, call in found.items()}
        return functional.cross_entropy(logits, batch["y"]), values

    return loss_fn


def in_steps() -> dict[str, Any]:
    of = torchmetrics.classification
    accuracy = of.MulticlassAccuracy(CLASSES, average="micro", validate_args=False)
    options = {"task": "multiclass", "num_classes": CLASSES, "average": "macro"}
    f1 = functools.partial(torchmetrics.functional.f1_score, **options)
    found = {
        "accuracy": metrics.from_torchmetrics(accuracy, keep="states"),
        "auroc": metrics.from_torchmetrics(of.MulticlassAUROC(CLASSES)),
        "f1": metrics.from_torchmetrics(f1),
    }
    for call in found.values():  # torchmetrics remembers which packages it found at the first call
        _ = call(*rows("Multiclass", 0)).value
    return found


def batch(seed: int, n: int = N) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=draws)
    return {"x": x, "y": torch.randint(0, CLASSES, (n,), generator=draws)}


@quiet
def test_steps_with_torchmetrics_pass_the_fast_law_checks_and_compile_to_one_graph() -> None:
    steps = ftrain.make_steps(lambda: nn.Linear(4, CLASSES), loss_of(in_steps()), optim.sgd(0.1))
    batches = [batch(0), batch(1)]
    assert testing.check_all(steps, batches, fast=True).passed
    compiled = ftrain.compile(steps.train_step, backend="eager")
    state = steps.init_state(0)
    for each in batches:
        expected = steps.train_step(state, each)
        found = compiled(state, each)
        testing.assert_same_bits(found, expected)
        for name in in_steps():
            assert torch.equal(found[1][name], expected[1][name])
        state = expected[0]
    assert compiled.n_compiles == 1


@quiet
def test_accumulated_steps_have_the_metrics_of_the_whole_batch() -> None:
    whole, parts = (
        ftrain.make_steps(
            lambda: nn.Linear(4, CLASSES), loss_of(in_steps()), optim.sgd(0.1), accumulate=k
        )
        for k in (1, 4)
    )
    state = whole.init_state(0)
    expected, found = (each.train_step(state, batch(0))[1] for each in (whole, parts))
    for name in in_steps():
        assert torch.allclose(found[name], expected[name]), name


def test_ensembles_report_the_metric_of_each_member() -> None:
    def error(preds: Tensor, target: Tensor) -> Tensor:
        return (preds - target).square().mean().sqrt()

    found = {
        "rmse": metrics.from_torchmetrics(
            torchmetrics.MeanSquaredError(squared=False), keep="states"
        ),
        "same": metrics.from_torchmetrics(error),
    }

    def loss_fn(model: nn.Module, batch: Any) -> Any:
        preds = model(batch["x"])[:, 0]
        values = {name: call(preds, batch["y"].float()) for name, call in found.items()}
        return (preds - batch["y"]).square().mean(), values

    steps = ftrain.make_steps(lambda: nn.Linear(4, 1), loss_fn, optim.sgd(0.1))
    states = [steps.init_state(seed) for seed in range(3)]
    single = [steps.eval_step(state, batch(0)) for state in states]
    stacked = ftrain.tree.map(lambda *x: torch.stack(x), *states)
    mapped = torch.vmap(steps.eval_step, (0, None))(stacked, batch(0))
    more = mapped.merge(torch.vmap(steps.eval_step, (0, None))(stacked, batch(1)))
    for name in found:
        assert torch.allclose(mapped[name], torch.stack([each[name] for each in single]))
        both = [
            one.merge(steps.eval_step(s, batch(1)))[name]
            for one, s in zip(single, states, strict=True)
        ]
        assert torch.allclose(more[name], torch.stack(both))


@quiet
def test_trainer_evaluates_and_logs_metrics_of_torchmetrics(tmp_path: pathlib.Path) -> None:
    whole = batch(0, 30)
    steps = ftrain.make_steps(lambda: nn.Linear(4, CLASSES), loss_of(in_steps()), optim.sgd(0.1))
    loader, held_out = data.Loader(whole, 10, seed=0), data.Loader(whole, 7, shuffle=False)
    trainer = Trainer(steps, store=Store(tmp_path), compile=False)
    result = trainer.fit(steps.init_state(0), loader, held_out, epochs=2)
    assert result.eval is not None
    params = result.state.params
    logits = nn.functional.linear(whole["x"], params["weight"], params["bias"])
    for name, call in in_steps().items():
        found = result.eval.metrics[name]
        assert found == pytest.approx(float(call(logits, whole["y"]).value), rel=1e-6), name


def test_from_torchmetrics_does_not_change_or_share_the_given_metric() -> None:
    metric = torchmetrics.classification.MulticlassAccuracy(CLASSES)
    metric.update(*rows("Multiclass", 0))
    before = metric.compute()
    call = metrics.from_torchmetrics(metric)
    args = rows("Multiclass", 1)
    value = call(*args).value
    assert torch.equal(metric.compute(), before)
    assert metric.update_count == 1
    metric.update(*args)
    assert torch.equal(call(*args).value, value)
