"""Test the losses that configurations name: values, metrics, padding, forms of batches, and runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import optim, tasks, testing
from ftrain.config import registry
from ftrain.core.metrics import Mean
from ftrain.tasks import functional

N = 6


class Two(nn.Module):
    """A tower for each of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(5, 3)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(image), self.second(text)


class Tokens(nn.Module):
    """A bigram model that returns its logits as Hugging Face's do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 7)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.embed(input_ids.clamp(min=0))}


def ints(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape)


def linear(outputs: int) -> nn.Module:
    return nn.Linear(4, outputs)


# Model, batch and options of each loss.
TEACHER = tasks.Teacher(nn.Linear(4, 3))
LOSSES: dict[str, Any] = {
    "cross_entropy": lambda: (linear(3), {"x": torch.randn(N, 4), "y": ints(3, N)}, {}),
    "cross_entropy weighted": lambda: (
        linear(3),
        {"x": torch.randn(N, 4), "y": ints(3, N)},
        {"class_weights": [1.0, 2.0, 0.5], "label_smoothing": 0.1},
    ),
    "cross_entropy of images": lambda: (
        nn.Conv2d(1, 3, 1),
        {"x": torch.randn(N, 1, 2, 2), "y": ints(3, N, 2, 2)},
        {},
    ),
    "cross_entropy soft": lambda: (
        linear(3),
        {"x": torch.randn(N, 4), "y": torch.randn(N, 3).softmax(1)},
        {},
    ),
    "binary_cross_entropy": lambda: (linear(1), {"x": torch.randn(N, 4), "y": ints(2, N)}, {}),
    "multi_label": lambda: (
        linear(3),
        {"x": torch.randn(N, 4), "y": ints(2, N, 3)},
        {"positive_weights": [1.0, 2.0, 0.5]},
    ),
    "mse": lambda: (linear(1), {"x": torch.randn(N, 4), "y": torch.randn(N)}, {}),
    "mae": lambda: (linear(2), {"x": torch.randn(N, 4), "y": torch.randn(N, 2)}, {}),
    "huber": lambda: (linear(1), {"x": torch.randn(N, 4), "y": torch.randn(N)}, {"delta": 0.5}),
    "gaussian_nll": lambda: (linear(2), {"x": torch.randn(N, 4), "y": torch.randn(N)}, {}),
    "causal_lm": lambda: (
        Tokens(),
        {"input_ids": ints(7, N, 5), "labels": ints(7, N, 5), "attention_mask": ints(2, N, 5)},
        {"label_smoothing": 0.1, "z_loss": 1e-3},
    ),
    "masked_lm": lambda: (Tokens(), {"input_ids": ints(7, N, 5), "labels": ints(7, N, 5)}, {}),
    "dice": lambda: (
        nn.Conv2d(1, 3, 1),
        {"x": torch.randn(N, 1, 2, 2), "y": ints(3, N, 2, 2)},
        {"smooth": 1.0},
    ),
    "dpo": lambda: (
        Tokens(),
        {
            **{name: ints(7, N, 5) for name in ("chosen", "rejected")},
            **{name: ints(7, N, 5) for name in ("chosen_labels", "rejected_labels")},
            **{name: torch.randn(N) for name in ("reference_chosen", "reference_rejected")},
        },
        {},
    ),
    "ctc": lambda: (
        nn.Linear(4, 5),
        {
            "x": torch.randn(N, 6, 4),
            "y": ints(4, N, 2) + 1,
            "input_lengths": torch.full((N,), 6),
            "label_lengths": ints(2, N) + 1,
        },
        {},
    ),
    "triplet": lambda: (
        linear(3),
        {name: torch.randn(N, 4) for name in ("anchor", "positive", "negative")},
        {},
    ),
    "info_nce": lambda: (
        Two(),
        {"image": torch.randn(N, 4), "text": torch.randn(N, 5)},
        {"logit_scale": "logit_scale"},
    ),
    "distillation": lambda: (
        linear(3),
        {"x": torch.randn(N, 4), "y": ints(3, N), "teacher": torch.randn(N, 3)},
        {},
    ),
    "feature_distillation": lambda: (
        nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)),
        {"x": torch.randn(N, 4), "y": ints(3, N), "teacher": torch.randn(N, 5)},
        {"layer": "0", "distance": "cosine"},
    ),
    "byol": lambda: (
        linear(3),
        {"first": torch.randn(N, 4), "second": torch.randn(N, 4)},
        {"teacher": TEACHER, "extras": {"teacher": TEACHER.start()}, "predictor": None},
    ),
    "supervised_contrastive": lambda: (
        linear(3),
        {"x": torch.randn(N, 4), "y": torch.arange(N) // 2},
        {},
    ),
}
for _name in ("focal", "lovasz", "tversky"):
    LOSSES[_name] = lambda: (*LOSSES["dice"]()[:2], {})
WHOLE_BATCH = ("info_nce", "supervised_contrastive")  # rows are compared with each other
SPLITTING = [name for name in LOSSES if name not in WHOLE_BATCH]


def first(name: str) -> str:
    return name.partition(" ")[0]


def called(name: str, model: nn.Module, batch: Any, options: Any) -> tuple[Mean, dict[str, Any]]:
    found = getattr(tasks, first(name))(model, batch, **options)
    return found if isinstance(found, tuple) and not isinstance(found, Mean) else (found, {})


def rows(batch: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {name: x[part] for name, x in batch.items()}


def test_every_registered_loss_of_ftrain_is_tested_here() -> None:
    own = {"next_token", "cached_info_nce"}  # in test_losses.py and test_grad_cache_refusals.py
    registered = {
        name
        for name, one in registry._REGISTERED["loss"].items()
        if str(one.component).startswith("ftrain.tasks:")
    }
    assert registered - own == {first(name) for name in LOSSES}
    assert registered <= set(tasks.__all__)


@pytest.mark.parametrize("name", SPLITTING)
def test_merged_loss_and_metrics_of_parts_equal_those_of_the_whole(name: str) -> None:
    model, batch, options = LOSSES[name]()
    whole, extra = called(name, model, batch, options)
    (one, head), (two, tail) = (
        called(name, model, rows(batch, part), options) for part in (slice(2), slice(2, N))
    )
    assert torch.allclose(one.merge(two).value, whole.value, rtol=1e-5)
    for metric in extra:
        merged = head[metric].merge(tail[metric]).value
        assert torch.allclose(merged, extra[metric].value, rtol=1e-5)


@pytest.mark.parametrize("name", SPLITTING)
def test_rows_of_weight_zero_add_nothing_to_loss_and_metrics(name: str) -> None:
    model, batch, options = LOSSES[name]()
    expected, extra = called(name, model, rows(batch, slice(4)), options)
    padded = {**batch, "weight": (torch.arange(N) < 4).float()}
    found, more = called(name, model, padded, options)
    assert torch.allclose(found.total, expected.total, rtol=1e-5)
    assert float(found.weight) == pytest.approx(float(expected.weight), rel=1e-5)
    for metric in extra:
        assert torch.allclose(more[metric].value, extra[metric].value, rtol=1e-5), metric


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_gives_the_same_step_with_and_without_micro_batches(name: str) -> None:
    model, batch, options = LOSSES[name]()

    def loss_fn(model: nn.Module, batch: Any) -> Any:
        return getattr(tasks, first(name))(model, batch, **options)

    count = 1 if name in WHOLE_BATCH else 3
    one, many = (
        ftrain.make_steps(model, loss_fn, optim.sgd(0.1), accumulate=k) for k in (1, count)
    )
    state = one.init_state(0)
    step = one.train_step if name == "ctc" else ftrain.compile(one.train_step, backend="eager")
    (new, metrics), (again, expected) = step(state, batch), many.train_step(state, batch)
    for x, y in zip(ftrain.tree.leaves(new.params), ftrain.tree.leaves(again.params), strict=True):
        assert torch.allclose(x, y, rtol=1e-4, atol=1e-6)
    assert metrics.keys() == expected.keys()
    assert bool(metrics["loss"].isfinite())


def test_losses_accept_batches_that_are_tuples() -> None:
    x, y = torch.randn(N, 4), ints(3, N)
    model = linear(3)
    found = tasks.cross_entropy(model, (x, y))[0]
    assert torch.equal(found.total, tasks.cross_entropy(model, {"x": x, "y": y})[0].total)
    towers, image, text = Two(), torch.randn(N, 4), torch.randn(N, 5)
    pairs = tasks.info_nce(towers, (image, text))[0]
    assert torch.equal(pairs.total, tasks.info_nce(towers, {"text": text, "image": image})[0].total)
    tokens = ints(7, 2, 5)
    labels = {"input_ids": tokens, "labels": tokens}
    bare = tasks.causal_lm(Tokens(), tokens)[0]
    assert float(bare.weight) == float(tasks.causal_lm(Tokens(), labels)[0].weight) == 8


def test_causal_lm_of_a_transformers_model_equals_the_loss_of_the_model() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    batch = transformers.BatchEncoding(
        {"input_ids": ints(11, 2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    )
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][0, 3:] = -100
    found = tasks.causal_lm(model, batch)[0].value
    assert torch.allclose(found, model(**batch).loss, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}]
)
def test_cross_entropy_applies_mixup_in_training_only(options: dict[str, float]) -> None:
    def loss_fn(model: nn.Module, batch: Any) -> Any:
        return tasks.cross_entropy(model, batch, classes=3, **options)

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    batch = {"x": torch.randn(N, 1, 4, 4), "y": ints(3, N)}
    steps = ftrain.make_steps(build, loss_fn, optim.sgd(0.1))
    plain = ftrain.make_steps(build, tasks.cross_entropy, optim.sgd(0.1))
    state = steps.init_state(0)
    assert torch.equal(steps.eval_step(state, batch)["loss"], plain.eval_step(state, batch)["loss"])
    losses = set()
    for _ in range(4):
        compiled = ftrain.compile(steps.train_step, backend="eager")(state, batch)
        state, metrics = steps.train_step(state, batch)
        assert ftrain.tree.digest(compiled[0]) == ftrain.tree.digest(state)
        losses.add(float(metrics["loss"]))
    assert len(losses) == 4
    with pytest.raises(ValueError, match="no entry 'weight' with mixup"):
        steps.train_step(state, {**batch, "weight": torch.ones(N)})


def test_learned_logit_scale_is_the_logarithm_of_one_over_the_temperature() -> None:
    model, batch, _ = LOSSES["info_nce"]()
    found = tasks.info_nce(model, batch, logit_scale="logit_scale")[0]
    expected = functional.info_nce(*model(**batch), temperature=torch.tensor(-1.0).exp())
    assert torch.equal(found.total, expected.total)
    (gradient,) = torch.autograd.grad(found.value, [model.logit_scale])
    assert gradient != 0


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("gaussian_nll", {"y": torch.ones(N, 2)}, "model: expected outputs of shape"),
        ("huber", {"y": ints(2, N)}, "huber: expected float32 numbers"),
        ("triplet", {"anchor": None}, "batch: expected a key 'anchor', got 'positive', 'negative'"),
        ("dpo", {"reference_chosen": None}, "'reference_chosen', got .*Add it to the batch"),
        ("ctc", {"label_lengths": None}, "expected a key 'label_lengths'"),
        ("info_nce", {"logit_scale": "scale"}, "0-d parameter .*got 'scale'; it has logit_scale"),
        ("causal_lm", {"labels": None}, "expected one entry called 'labels'"),
        ("cross_entropy", {"y": torch.tensor([9] * N)}, r"got 9 at \[0\]"),
    ],
)
def test_losses_refuse_missing_entries_and_wrong_targets(
    name: str, change: dict[str, Any], says: str
) -> None:
    model, batch, options = LOSSES[name]()
    changed = {k: x for k, x in {**batch, **change}.items() if x is not None}
    if name == "info_nce":
        changed, options = batch, change
    with pytest.raises((KeyError, TypeError, ValueError), match=says):
        called(name, model, changed, options)
    if name == "triplet":
        with pytest.raises(TypeError, match="expected a dict with an entry 'anchor', got Tensor"):
            called(name, model, torch.ones(2), options)


@pytest.mark.parametrize("name", LOSSES)
def test_each_missing_entry_of_a_batch_raises_with_the_existing_entries(name: str) -> None:
    model, batch, options = LOSSES[name]()
    for missing in batch.keys() - {"attention_mask"}:  # optional
        others = {key: x for key, x in batch.items() if key != missing}
        with pytest.raises(KeyError) as raised:
            called(name, model, others, options)
        message = str(raised.value)
        assert "expected" in message
        assert all(f"'{key}'" in message for key in others)
        assert "Name " in message or "Add " in message


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize(
    "name", ["cross_entropy", "cross_entropy of images", "causal_lm", "masked_lm", "dice", "focal"]
)
def test_step_on_a_batch_whose_labels_are_all_ignored_is_skipped_or_raises(
    name: str, nonfinite: Any
) -> None:
    model, batch, options = LOSSES[name]()
    target = "labels" if "labels" in batch else "y"
    batch[target] = torch.full_like(batch[target], -100)

    def loss_fn(model: nn.Module, batch: Any) -> Any:
        return called(name, model, batch, options)

    steps = ftrain.make_steps(model, loss_fn, optim.sgd(0.1), nonfinite=nonfinite)
    state = steps.init_state(0)
    if nonfinite == "raise":
        with pytest.raises(ftrain.errors.NonFiniteError, match="has total weight 0"):
            steps.train_step(state, batch)
        return
    new, metrics = steps.train_step(state, batch)
    assert (metrics.entries["loss"].total, metrics.entries["loss"].weight) == (0, 0)
    assert metrics["skipped"] == 1
    testing.assert_same_bits(new.params, state.params)
    assert not any(
        gradient.isnan().any()
        for gradient in ftrain.gradients(model, loss_fn)(state, batch).grads.values()
    )


def test_perplexity_leaves_out_smoothing_and_z_loss() -> None:
    model, batch, options = LOSSES["causal_lm"]()
    plain = tasks.causal_lm(model, batch)[0].value
    perplexity = tasks.causal_lm(model, batch, **options)[1]["perplexity"].value
    assert torch.allclose(perplexity, plain.exp(), rtol=1e-6)


def test_dpo_accuracy_counts_preferences_relative_to_the_reference_model() -> None:
    model, batch, _ = LOSSES["dpo"]()
    with torch.no_grad():
        logits = [model(batch[name])["logits"] for name in ("chosen", "rejected")]
    labels = [batch["chosen_labels"], batch["rejected_labels"]]
    chosen, rejected = map(functional.sequence_log_probs, logits, labels)
    margins = chosen - batch["reference_chosen"] - rejected + batch["reference_rejected"]
    found = tasks.dpo(model, batch, beta=0.5)[1]
    assert torch.allclose(found["margin"].value, 0.5 * margins.mean(), rtol=1e-5)
    assert torch.allclose(found["accuracy"].value, (margins > 0).float().mean())
