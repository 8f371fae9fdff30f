"""Test that the rows of padding in any kind of batch change no loss of `tasks` and no gradient."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ftrain
from ftrain import data, optim, tasks

N, FEATURES, CLASSES, LENGTH = 7, 3, 4, 5
X = torch.randn(N, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(N) % CLASSES
TOKENS = torch.arange(N * LENGTH).reshape(N, LENGTH) % 6


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclasses.dataclass
class Sample:
    x: Tensor
    y: Tensor


def linear() -> nn.Module:
    return nn.Linear(FEATURES, CLASSES).double()


def of_tokens() -> nn.Module:
    return nn.Sequential(nn.Embedding(6, 6), nn.Linear(6, 6)).double()


def pixels() -> nn.Module:
    return nn.Conv2d(1, CLASSES, 1).double()


def of_samples(kind: Any) -> list[Any]:
    return [kind(x, y) for x, y in zip(X, LABELS, strict=True)]


def in_one(samples: list[Any]) -> Sample:
    """Return a batch of one dataclass, whose fields hold all rows."""
    return Sample(torch.stack([s.x for s in samples]), torch.stack([s.y for s in samples]))


NUMBERS = X @ torch.ones(FEATURES, CLASSES, dtype=torch.float64)
CASES = [
    ("tuple", linear, tasks.cross_entropy, (X, LABELS), {}),
    ("samples of tuples", linear, tasks.cross_entropy, of_samples(lambda x, y: (x, y)), {}),
    ("NamedTuple", linear, tasks.cross_entropy, of_samples(Pair), {}),
    ("dataclass", linear, tasks.cross_entropy, of_samples(Sample), {"collate": in_one}),
    ("nested", linear, tasks.cross_entropy, ({"input": X}, LABELS), {}),
    ("regression", linear, tasks.mse, (X, NUMBERS), {}),
    ("pixels", pixels, tasks.focal, (X.unflatten(1, (1, 3, 1)), TOKENS[:, :3, None] % CLASSES), {}),
    ("tokens", of_tokens, tasks.next_token, TOKENS, {}),
    ("language", of_tokens, tasks.causal_lm, TOKENS, {}),
    ("task", of_tokens, tasks.language_modeling().loss_fn, TOKENS, {}),
    ("images", linear, tasks.image_classification().loss_fn, (X, LABELS), {}),
    ("mapping", linear, tasks.cross_entropy, {"x": X, "y": LABELS}, {}),
]


@pytest.mark.parametrize(
    ("model", "loss", "rows", "options"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_padding_rows_change_neither_loss_nor_gradient(model, loss, rows, options):
    steps = ftrain.make_steps(model, loss, optim.sgd(0.1))
    state = steps.init_state(0)
    loader = data.Loader(rows, N, shuffle=False, **options)
    padded = data.Loader(rows, 10, shuffle=False, last_batch="pad", **options)
    (whole,), (batch,) = list(loader), list(padded)
    weight = batch["weight"] if isinstance(batch, dict) else batch.weight
    assert weight.tolist() == [1.0] * N + [0.0] * 3
    (one, metrics), (other, padded_metrics) = (steps.train_step(state, b) for b in (whole, batch))
    for name, value in metrics.items():
        torch.testing.assert_close(padded_metrics[name], value, rtol=1e-12, atol=1e-14)
    for name, value in one.params.items():
        torch.testing.assert_close(other.params[name], value, rtol=1e-12, atol=1e-14)
        assert not torch.equal(value, state.params[name])


def test_padding_weights_are_not_taken_for_labels():
    """A batch of one tensor has no labels; a former version took its padding weights for labels."""
    steps = ftrain.make_steps(linear, tasks.mse, optim.sgd(0.1))
    (batch,) = data.Loader(X, 10, shuffle=False, last_batch="pad")
    with pytest.raises(TypeError, match="expected a tuple .x, labels. or named entries"):
        steps.train_step(steps.init_state(0), batch)
