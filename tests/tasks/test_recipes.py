"""Test tasks: losses and metrics against independent ones, over splits of data, and laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ftrain
from ftrain import optim, tasks, testing
from ftrain.config import registry
from ftrain.core.metrics import Mean
from tests.tasks.test_named_losses import Tokens, Two

N = 6
seeds = st.integers(0, 10_000)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ints(seed: int, high: int, *shape: int, ignored: float = 0.0) -> Tensor:
    labels = torch.randint(0, high, shape, generator=draws(seed))
    return labels.masked_fill(torch.rand(shape, generator=draws(seed + 1)) < ignored, -100)


def floats(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draws(seed))


class Pixels(nn.Conv2d):
    """A logit for each of three classes at each pixel."""

    def __init__(self) -> None:
        super().__init__(1, 3, 3, padding=1)


# Task, model and batch by seed.
TASKS: dict[str, Any] = {
    "language_modeling": (
        lambda: tasks.language_modeling(label_smoothing=0.1, z_loss=1e-3),
        Tokens,
        lambda seed: {
            "input_ids": ints(seed, 7, N, 5),
            "labels": ints(seed, 7, N, 5, ignored=0.3),
        },
    ),
    "language_modeling masked": (
        lambda: tasks.language_modeling(objective="masked"),
        Tokens,
        lambda seed: {
            "input_ids": ints(seed, 7, N, 5),
            "labels": ints(seed, 7, N, 5, ignored=0.3),
        },
    ),
    "text_classification": (
        lambda: tasks.text_classification(label_smoothing=0.1, class_weights=[1.0, 2.0, 0.5]),
        lambda: nn.Sequential(nn.EmbeddingBag(7, 4), nn.Linear(4, 3)),
        lambda seed: {"tokens": ints(seed, 7, N, 5), "label": ints(seed, 3, N)},
    ),
    "image_classification": (
        lambda: tasks.image_classification(label_smoothing=0.1, top_k=2),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)),
        lambda seed: {"image": floats(seed, N, 1, 2, 2), "label": ints(seed, 3, N)},
    ),
    "segmentation": (
        lambda: tasks.segmentation(label_smoothing=0.1, dice=0.5),
        Pixels,
        lambda seed: {
            "image": floats(seed, N, 1, 3, 2),
            "label": ints(seed, 3, N, 3, 2, ignored=0.3),
        },
    ),
    "retrieval": (
        lambda: tasks.retrieval(logit_scale="logit_scale", k=2),
        Two,
        lambda seed: {"image": floats(seed, N, 4), "text": floats(seed + 1, N, 5)},
    ),
}
SPLITTING = [name for name in TASKS if name != "retrieval"]


def rows(batch: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {name: x[part] for name, x in batch.items()}


def test_every_registered_task_of_ftrain_is_tested_here() -> None:
    registered = {
        name
        for name, one in registry._REGISTERED["task"].items()
        if str(one.component).startswith("ftrain.tasks")
    }
    assert registered == {name.partition(" ")[0] for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_eval_fn_of_a_task_returns_the_metrics_that_the_task_lists(name: str) -> None:
    task, model, batch = TASKS[name]
    found = task().eval_fn(model(), batch(0))[1]
    assert set(found) == set(task().metrics)
    assert len(task().metrics) == len(found)


@pytest.mark.parametrize("name", TASKS)
def test_steps_of_tasks_pass_the_fast_law_checks_and_compile_once(name: str) -> None:
    make, model, batch = TASKS[name]
    task = make()
    steps = ftrain.make_steps(model, task.loss_fn, optim.adam(1e-2), eval_fn=task.eval_fn)
    assert testing.check_all(steps, [batch(0), batch(1)], fast=True).passed
    state = steps.init_state(0)
    compiled = ftrain.compile(steps.train_step, backend="eager")
    testing.assert_same_bits(compiled(state, batch(0)), steps.train_step(state, batch(0)))
    evaluated = ftrain.compile(steps.eval_step, backend="eager")
    testing.assert_same_bits(evaluated(state, batch(0)), steps.eval_step(state, batch(0)))


@pytest.mark.parametrize("fn", ["loss_fn", "eval_fn"])
@pytest.mark.parametrize("name", SPLITTING)
@settings(max_examples=10)
@given(cut=st.integers(1, N - 1), seed=seeds)
def test_merged_losses_and_metrics_of_tasks_over_parts_equal_those_of_the_whole(
    name: str, fn: str, cut: int, seed: int
) -> None:
    make, model, batch = TASKS[name]
    torch.manual_seed(seed)
    call, module = getattr(make(), fn), model().double()
    whole = call(module, doubled(batch(seed)))
    one, two = (
        call(module, doubled(rows(batch(seed), part))) for part in (slice(cut), slice(cut, N))
    )
    assert torch.allclose(one[0].merge(two[0]).value, whole[0].value, rtol=1e-12, equal_nan=True)
    for metric in whole[1]:
        merged = one[1][metric].merge(two[1][metric]).value
        assert torch.allclose(merged, whole[1][metric].value, rtol=1e-12, equal_nan=True), metric


def doubled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}


@pytest.mark.parametrize("name", TASKS)
def test_rows_of_weight_zero_do_not_change_loss_and_metrics_of_tasks(name: str) -> None:
    make, model, batch = TASKS[name]
    module, whole = model(), batch(0)
    padded = {**whole, "weight": (torch.arange(N) < 4).float()}
    for fn in (make().loss_fn, make().eval_fn):
        expected, found = fn(module, rows(whole, slice(4))), fn(module, padded)
        assert torch.allclose(found[0].value, expected[0].value, rtol=1e-5)
        for metric in expected[1]:
            one, two = found[1][metric].value, expected[1][metric].value
            assert torch.allclose(one, two, rtol=1e-5), metric


@settings(max_examples=20)
@given(seed=seeds)
def test_segmentation_loss_is_the_mean_over_images_of_cross_entropy_and_dice(seed: int) -> None:
    logits, labels = floats(seed, N, 3, 4, 2).double(), ints(seed, 3, N, 4, 2, ignored=0.4)
    labels[0] = -100
    expected = []
    for x, y in zip(logits, labels, strict=True):
        counts = y != -100
        if not counts.any():
            continue
        pixels, classes = x[:, counts].T, y[counts]
        p, truth = pixels.softmax(1), F.one_hot(classes, 3).double()
        dice = 1 - 2 * (p * truth).sum(0) / (p.sum(0) + truth.sum(0))
        expected.append(0.3 * F.cross_entropy(pixels, classes) + dice[truth.any(0)].mean())

    class Given(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return logits

    task = tasks.segmentation(cross_entropy=0.3)
    found = task.loss_fn(Given(), {"image": logits, "label": labels})[0]
    assert float(found.weight) == len(expected)
    if expected:
        assert torch.allclose(found.value, torch.stack(expected).mean(), rtol=1e-12)
    else:
        assert float(found.total) == 0


def test_evaluation_of_a_task_omits_label_smoothing_and_z_loss() -> None:
    task, model, batch = (part for part in TASKS["text_classification"])
    module, given = model(), batch(0)
    plain = F.cross_entropy(module(given["tokens"]), given["label"])
    assert torch.allclose(task().eval_fn(module, given)[0].value, plain)
    assert not torch.allclose(task().loss_fn(module, given)[0].value, plain)
    task, model, batch = (part for part in TASKS["language_modeling"])
    module, given = model(), batch(0)
    logits = module(given["input_ids"])["logits"]
    plain = F.cross_entropy(logits[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten())
    for fn in (task().loss_fn, task().eval_fn):
        assert torch.allclose(fn(module, given)[1]["perplexity"].value, plain.exp())
    assert torch.allclose(task().eval_fn(module, given)[0].value, plain)


def test_language_modeling_of_windows_predicts_all_tokens_but_the_first() -> None:
    windows, model = ints(0, 7, N, 5), Tokens()
    loss, found = tasks.language_modeling().eval_fn(model, windows)
    expected = tasks.next_token(model, windows)
    assert torch.allclose(loss.value, expected.value)
    assert int(loss.weight) == int(expected.weight) == N * 4
    hits = model(windows[:, :-1])["logits"].argmax(-1) == windows[:, 1:]
    assert torch.allclose(found["accuracy"].value, hits.float().mean())


def test_language_modeling_shifts_weights_of_labels_with_the_labels() -> None:
    _, model, batch = TASKS["language_modeling"]
    module, given = model(), batch(0)
    weights = torch.zeros(N, 5)
    weights[:, 2] = 1
    loss = tasks.language_modeling().eval_fn(module, {**given, "weight": weights})[0]
    only = given["labels"].masked_fill(weights == 0, -100)
    expected = tasks.language_modeling().eval_fn(module, {**given, "labels": only})[0]
    assert torch.allclose(loss.value, expected.value)


def test_image_classification_applies_mixup_in_training_only() -> None:
    task = tasks.image_classification(mixup=1.0, classes=3)
    _, model, batch = TASKS["image_classification"]
    steps = ftrain.make_steps(model, task.loss_fn, optim.sgd(0.0), eval_fn=task.eval_fn)
    state = steps.init_state(0)
    losses = set()
    for _ in range(3):
        state, metrics = steps.train_step(state, batch(0))
        losses.add(float(metrics["loss"]))
        evaluated = float(steps.eval_step(state, batch(0))["loss"])
        assert evaluated not in losses
    assert len(losses) == 3


def test_mixup_refuses_a_batch_with_two_inputs() -> None:
    task, (_, model, batch) = (
        tasks.image_classification(mixup=1.0, classes=3),
        TASKS["image_classification"],
    )
    steps = ftrain.make_steps(model, task.loss_fn, optim.sgd(0.0))
    with pytest.raises(ValueError, match="mixup and cutmix mix, got 'image', 'depth'"):
        steps.train_step(
            steps.init_state(0),
            {"image": batch(0)["image"], "depth": torch.ones(N), "label": batch(0)["label"]},
        )


def test_tasks_accept_batches_that_are_tuples() -> None:
    for name in ("text_classification", "image_classification", "segmentation"):
        make, model, batch = TASKS[name]
        module, given = model(), batch(0)
        for fn in (make().loss_fn, make().eval_fn):
            testing.assert_same_bits(fn(module, tuple(given.values())), fn(module, given))


def test_soft_labels_are_evaluated_by_their_likeliest_class() -> None:
    task, model = tasks.image_classification(), nn.Linear(4, 3)
    x, soft = floats(0, N, 4), floats(1, N, 3).softmax(1)
    loss, found = task.eval_fn(model, {"x": x, "y": soft})
    hard = task.eval_fn(model, {"x": x, "y": soft.argmax(1)})[1]
    testing.assert_same_bits(found, hard)
    assert torch.allclose(loss.value, F.cross_entropy(model(x), soft))


def test_retrieval_warns_that_micro_batches_change_its_loss() -> None:
    make, model, _ = TASKS["retrieval"]
    with pytest.warns(UserWarning, match="2 micro-batches change .*info_nce"):
        ftrain.make_steps(model, make().loss_fn, optim.sgd(0.1), accumulate=2)


def test_retrieval_metrics_are_exact_for_embeddings_with_known_ranks() -> None:
    def model(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return image, text

    x = torch.eye(4)
    found = tasks.retrieval(k=2).eval_fn(model, (x, x))[1]
    assert {name: float(one.value) for name, one in found.items()} == {
        "mean_reciprocal_rank": 1,
        "recall_at_1": 1,
        "recall_at_2": 1,
    }
    scores = torch.eye(4).roll(1, 0) + 0.5 * torch.eye(4)  # the partner is the second of each
    found = tasks.retrieval(k=2).eval_fn(model, (x, scores))[1]
    assert float(found["recall_at_1"].value) == 0
    assert float(found["recall_at_2"].value) == 1
    assert float(found["mean_reciprocal_rank"].value) == 0.5


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: tasks.language_modeling(objective="prefix"), "objective: expected 'causal'"),  # type: ignore[arg-type]
        (lambda: tasks.segmentation(dice=0, cross_entropy=0), "that are not both 0, got 0 and 0"),
        (lambda: tasks.segmentation(dice=-1), "factors of 0 or more"),
        (lambda: tasks.retrieval(k=1), "k: expected 2 or more"),
    ],
)
def test_tasks_refuse_wrong_options(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_loss_of_a_task_whose_labels_are_all_ignored_has_weight_zero() -> None:
    for name in SPLITTING:
        make, model, batch = TASKS[name]
        label = next(key for key in batch(0) if key.startswith("label"))
        given = {**batch(0), label: torch.full_like(batch(0)[label], -100)}
        for fn in (make().loss_fn, make().eval_fn):
            loss: Mean = fn(model(), given)[0]
            assert float(loss.weight) == 0, name
            assert float(loss.total.detach()) == 0, name
