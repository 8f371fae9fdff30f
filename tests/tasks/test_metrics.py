"""Test metrics against scikit-learn and naive formulas, over splits of data, compiled and vmapped."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import optim
from ftrain.core.metrics import Mean
from ftrain.tasks import functional, metrics

CLASSES = 4
seeds = st.integers(0, 10_000)
# Integers and ties, so that counts and ranks are exact.
METRICS: dict[str, Any] = {
    "accuracy": metrics.accuracy,
    "top_k_accuracy": functools.partial(metrics.top_k_accuracy, k=2),
    "recall_at_k": functools.partial(metrics.recall_at_k, k=2),
    "mean_reciprocal_rank": metrics.mean_reciprocal_rank,
    "confusion_matrix": metrics.confusion_matrix,
    "f1 macro": metrics.f1,
    "f1 micro": functools.partial(metrics.f1, average="micro"),
    "f1 weighted": functools.partial(metrics.f1, average="weighted"),
    "f1 none": functools.partial(metrics.f1, average="none"),
    "mean_iou": metrics.mean_iou,
    "calibration_error": functools.partial(metrics.calibration_error, bins=5),
    "perplexity": lambda x, y: metrics.perplexity(functional.cross_entropy(x, y)),
    "bits_per_byte": lambda x, y: metrics.bits_per_byte(functional.cross_entropy(x, y), 7 * len(y)),
}


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=draws)
    labels = labels.where(torch.rand(n, generator=draws) > 0.2, -100)
    labels[0] = labels[0].clamp(min=0)
    return torch.randint(-3, 4, (n, CLASSES), generator=draws).double(), labels


def known(n: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    logits, labels = rows(n, seed)
    keep = labels != -100
    return logits, labels, labels[keep].numpy(), logits.argmax(-1)[keep].numpy()


def ranks(scores: Tensor) -> list[list[int]]:
    """Return the places of each row by falling score, the first of equal ones first."""
    return [sorted(range(len(row)), key=lambda i: -row[i]) for row in scores.tolist()]


@settings(max_examples=20)
@given(n=st.integers(1, 12), seed=seeds)
def test_classification_metrics_equal_those_of_scikit_learn(n: int, seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    logits, labels, true, found = known(n, seed)
    expected = sklearn.confusion_matrix(true, found, labels=range(CLASSES))
    assert metrics.confusion_matrix(logits, labels).value.tolist() == expected.tolist()
    assert float(metrics.accuracy(logits, labels).value) == pytest.approx(
        sklearn.accuracy_score(true, found)
    )
    for average in ("macro", "micro", "weighted"):
        expected = sklearn.f1_score(true, found, average=average, zero_division=0)
        score = metrics.f1(logits, labels, average=average).value
        assert float(score) == pytest.approx(expected, rel=1e-6)
    expected = sklearn.jaccard_score(true, found, average="macro", zero_division=0)
    assert float(metrics.mean_iou(logits, labels).value) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=20)
@given(n=st.integers(1, 8), seed=seeds)
def test_f1_of_independent_labels_equals_that_of_scikit_learn(n: int, seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, CLASSES, generator=draws)
    labels = torch.randint(0, 2, (n, CLASSES), generator=draws)
    labels[0] = 1  # every class occurs: scikit-learn counts an absent class as 0
    for average in ("macro", "micro", "weighted"):
        expected = sklearn.f1_score(labels, logits > 0, average=average, zero_division=0)
        found = metrics.f1(logits, labels, average=average).value
        assert float(found) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=20)
@given(n=st.integers(1, 12), k=st.integers(1, 5), seed=seeds)
def test_ranking_metrics_equal_a_naive_implementation(n: int, k: int, seed: int) -> None:
    logits, labels = rows(n, seed)
    pairs = [(order, y) for order, y in zip(ranks(logits), labels.tolist(), strict=True) if y >= 0]
    hits = sum(y in order[:k] for order, y in pairs) / len(pairs)
    for found in (
        metrics.top_k_accuracy(logits, labels, k=k),
        metrics.recall_at_k(logits, labels, k=k),
    ):
        assert float(found.value) == pytest.approx(hits)
    expected = sum(1 / (1 + order.index(y)) for order, y in pairs) / len(pairs)
    assert float(metrics.mean_reciprocal_rank(logits, labels).value) == pytest.approx(expected)


@settings(max_examples=20)
@given(n=st.integers(1, 6), k=st.integers(1, 5), seed=seeds)
def test_ranking_metrics_of_several_relevant_documents_equal_a_naive_implementation(
    n: int, k: int, seed: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (n, 5), generator=draws).float()
    relevant = torch.rand(n, 5, generator=draws) < 0.4
    relevant[0, 0] = True
    recalls, reciprocals = [], []
    for order, row in zip(ranks(scores), relevant.tolist(), strict=True):
        if any(row):
            recalls.append(sum(row[i] for i in order[:k]) / sum(row))
            reciprocals.append(1 / (1 + next(r for r, i in enumerate(order) if row[i])))
    found = metrics.recall_at_k(scores, relevant, k=k)
    assert float(found.value) == pytest.approx(sum(recalls) / len(recalls))
    found = metrics.mean_reciprocal_rank(scores, relevant)
    assert float(found.value) == pytest.approx(sum(reciprocals) / len(reciprocals))
    assert int(found.weight) == len(recalls)


@settings(max_examples=20)
@given(n=st.integers(1, 20), bins=st.integers(1, 6), seed=seeds)
def test_calibration_error_equals_a_naive_implementation(n: int, bins: int, seed: int) -> None:
    logits, labels = rows(n, seed)
    logits = logits + 0.01 * torch.arange(CLASSES)  # no confidence on the edge of a bin
    inside: dict[int, list[tuple[float, bool]]] = {}
    for row, y in zip(logits.softmax(-1).tolist(), labels.tolist(), strict=True):
        if y >= 0:
            confidence = max(row)
            b = next(b for b in range(bins) if confidence <= (b + 1) / bins + 1e-12)
            inside.setdefault(b, []).append((confidence, row.index(confidence) == y))
    total = sum(map(len, inside.values()))
    expected = sum(
        abs(sum(c for c, _ in each) - sum(hit for _, hit in each)) for each in inside.values()
    )
    found = metrics.calibration_error(logits, labels, bins=bins)
    assert float(found.value) == pytest.approx(expected / total)


def test_uniform_logits_give_a_perplexity_equal_to_the_vocabulary_size() -> None:
    loss = functional.causal_lm(torch.zeros(1, 5, 8), torch.zeros(1, 5).long())
    assert float(metrics.perplexity(loss).value) == pytest.approx(8)
    assert float(metrics.bits_per_byte(loss, 6).value) == pytest.approx(4 * 3 / 6)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=15)
@given(n=st.integers(1, 9), cuts=st.sets(st.integers(1, 8), max_size=3), seed=seeds)
def test_metrics_merged_over_parts_equal_those_of_the_whole(
    name: str, n: int, cuts: set[int], seed: int
) -> None:
    logits, labels = rows(n, seed)
    edges = [0, *sorted(cut for cut in cuts if cut < n), n]
    parts = [METRICS[name](logits[a:b], labels[a:b]) for a, b in itertools.pairwise(edges)]
    merged = functools.reduce(lambda one, two: one.merge(two), parts)
    whole = METRICS[name](logits, labels)
    assert type(merged) is type(whole)
    assert torch.allclose(merged.value, whole.value, rtol=1e-6, equal_nan=True)
    order = torch.randperm(n)
    shuffled = METRICS[name](logits[order], labels[order])
    assert torch.allclose(shuffled.value, whole.value, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", METRICS)
def test_metric_of_a_batch_without_valid_labels_is_nan_and_changes_nothing_in_a_merge(
    name: str,
) -> None:
    logits, labels = rows(6, 0)
    nothing = METRICS[name](logits, torch.full_like(labels, -100))
    if name == "bits_per_byte":
        assert float(nothing.value) == 0
        return
    whole = METRICS[name](logits, labels)
    assert torch.equal(nothing.merge(whole).value.nan_to_num(-1), whole.value.nan_to_num(-1))
    if name != "confusion_matrix":
        assert nothing.value.isnan().all()


@pytest.mark.parametrize("name", METRICS)
def test_compiled_and_vmapped_metrics_have_the_bytes_of_eager_ones(name: str) -> None:
    members = [rows(5, seed) for seed in range(3)]
    compiled = ftrain.compile(METRICS[name], backend="eager")
    found = [METRICS[name](*member) for member in members]
    assert [ftrain.tree.digest(compiled(*member)) for member in members] == [
        ftrain.tree.digest(each) for each in found
    ]
    stacked = torch.vmap(lambda x, y: tuple(METRICS[name](x, y)))(
        *(torch.stack(x) for x in zip(*members, strict=True))
    )
    for one, two in zip(stacked, zip(*found, strict=True), strict=True):
        assert torch.allclose(one, torch.stack(two), rtol=1e-12)
    # The value of stacked counts is that of each, as an ensemble reports it.
    values = type(found[0])(*stacked).value
    assert torch.allclose(values, torch.stack([each.value for each in found]), equal_nan=True)


def test_metrics_of_accumulated_steps_and_merged_evaluations_are_those_of_the_whole_batch() -> None:
    def loss_fn(model: nn.Module, batch: Any) -> Any:
        logits = model(batch["x"])
        found = {name: metric(logits, batch["y"]) for name, metric in METRICS.items()}
        return functional.cross_entropy(logits, batch["y"]), found

    x, y = torch.randn(8, 3), rows(8, 0)[1]
    whole, part = (
        ftrain.make_steps(lambda: nn.Linear(3, CLASSES), loss_fn, optim.sgd(0.1), accumulate=k)
        for k in (1, 4)
    )
    state = whole.init_state(0)
    expected = whole.train_step(state, {"x": x, "y": y})[1]
    accumulated = part.train_step(state, {"x": x, "y": y})[1]
    evaluated = whole.eval_step(state, {"x": x[:3], "y": y[:3]}).merge(
        whole.eval_step(state, {"x": x[3:], "y": y[3:]})
    )
    for name in METRICS:
        for found in (accumulated, evaluated):
            assert torch.allclose(found[name], expected[name], rtol=1e-5, equal_nan=True), name


def test_relevant_document_with_a_nan_score_does_not_count_as_found() -> None:
    scores = torch.full((1, 3), math.nan)
    assert float(metrics.mean_reciprocal_rank(scores, torch.tensor([0])).value) == 0
    assert float(metrics.recall_at_k(scores, torch.tensor([0]), k=1).value) == 0
    scores = torch.tensor([[1.0, math.nan, 0.0]])
    assert float(metrics.mean_reciprocal_rank(scores, torch.tensor([0])).value) == 0.5


def test_metrics_count_a_row_of_weight_n_as_n_rows() -> None:
    logits, labels = torch.eye(2), torch.tensor([0, 0])
    weights = torch.tensor([3.0, 1.0])
    assert float(metrics.accuracy(logits, labels, row_weights=weights).value) == 0.75
    assert float(metrics.top_k_accuracy(logits, labels, k=1, row_weights=weights).value) == 0.75
    assert float(metrics.recall_at_k(logits, labels, k=1, row_weights=weights).value) == 0.75
    assert float(metrics.mean_reciprocal_rank(logits, labels, row_weights=weights).value) == 0.875
    found = metrics.calibration_error(logits, labels, bins=1, row_weights=weights)
    confidence = float(F.softmax(torch.tensor([1.0, 0.0]), 0)[0])
    assert float(found.value) == pytest.approx(abs(confidence - 0.75))


def test_mean_iou_of_images_counts_pixels() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1, 0] = 1  # the upper row is class 1
    labels = torch.tensor([[[1, 0], [0, -100]]])
    assert float(metrics.mean_iou(logits, labels).value) == pytest.approx((1 / 2 + 1 / 2) / 2)


X, L = torch.zeros(2, 3), torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: metrics.accuracy(X, L[:1]), r"shape \(2,\) for logits"),
        (lambda: metrics.top_k_accuracy(X, L), r"classes 0 to 2.*got 3 at \[1\]"),
        (lambda: metrics.top_k_accuracy(X, X), "or bool of shape"),
        (lambda: metrics.recall_at_k(X, L * 0, k=0), "k: expected a positive"),
        (lambda: metrics.confusion_matrix(X, L), r"got 3 at \[1\]"),
        (lambda: metrics.confusion_matrix(X, L - 4), r"got -4 at \[0\]"),
        (lambda: metrics.confusion_matrix(X, L[:1]), r"shape \(2,\) for logits"),
        (lambda: metrics.f1(X, L * 0, average="mean"), "average: expected 'macro'"),  # type: ignore[arg-type]
        (lambda: metrics.calibration_error(X, L, bins=0), "bins: expected"),
        (lambda: metrics.calibration_error(X, L[:1]), r"shape \(2,\) for logits"),
    ],
)
def test_wrong_labels_and_arguments_raise_with_the_remedy(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_merging_perplexities_gives_a_perplexity() -> None:
    one = metrics.perplexity(Mean(torch.tensor(1.0), torch.tensor(1)))
    assert float(one.merge(one).value) == pytest.approx(math.e)


def test_confidence_on_the_edge_of_two_calibration_bins_belongs_to_the_lower() -> None:
    sure = math.log(4)  # a confidence of 0.8
    logits, labels = torch.tensor([[0.0, 0.0], [sure, 0.0]]), torch.tensor([0, 1])
    found = metrics.calibration_error(logits, labels, bins=2)
    assert found.weight.tolist() == [1, 1]
    assert float(found.value) == pytest.approx((0.5 + 0.8) / 2)


def test_equal_scores_keep_their_order_in_long_rows() -> None:
    scores, n = torch.zeros(1, 1000), 1000
    found = metrics.mean_reciprocal_rank(scores.expand(n, n), torch.arange(n))
    assert float(found.value) == pytest.approx(sum(1 / rank for rank in range(1, n + 1)) / n)
    assert float(metrics.recall_at_k(scores, torch.tensor([700]), k=701).value) == 1
    assert float(metrics.recall_at_k(scores, torch.tensor([700]), k=700).value) == 0
