"""Mistakes of a first day: each is told what was found and what to write instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ftrain
from ftrain import optim

BATCH = torch.ones(4, 3)


def net() -> nn.Module:
    return nn.Linear(3, 1)


def loss_fn(model: Any, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda loss: loss.item(), r"found float\. .*left the graph, by \.item\(\)"),
        (lambda loss: None, r"found NoneType\. Is a `return` missing\?"),
        (lambda loss: {"loss": loss}, r"found dict\. .*return loss, metrics"),
        (lambda loss: loss.expand(2), r"found float32\[2\]\. Reduce it: loss\.mean\(\)"),
    ],
)
def test_a_loss_that_is_no_scalar(wrong, hint):
    steps = ftrain.make_steps(net, lambda m, b: wrong(loss_fn(m, b).detach()), optim.sgd(0.1))
    with pytest.raises(TypeError, match=hint):
        steps.train_step(steps.init_state(0), BATCH)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (torch.optim.Adam([torch.zeros(1)]), r"in place: .*from_torch\(torch\.optim\.Adam, lr="),
        (optim.adamw, r"adamw was not called: write adamw\(1e-3\)"),
    ],
)
def test_an_optimizer_that_is_none(wrong, hint):
    with pytest.raises(TypeError, match=f"(?s){hint}"):
        ftrain.make_steps(net, loss_fn, wrong)


def test_a_batch_that_weighs_nothing_is_a_step_with_zero_gradients():
    def masked(model: Any, batch: Any) -> ftrain.Mean:
        mask = torch.zeros(len(batch))
        return ftrain.Mean((model(batch).square().mean(-1) * mask).sum(), mask.sum())

    steps = ftrain.make_steps(net, masked, optim.adamw(0.1))
    new, metrics = steps.train_step(steps.init_state(0), BATCH)
    assert metrics["loss"].isnan()
    assert (metrics["grad_norm"], metrics["skipped"], new.step) == (0, 0, 1)
    assert all(p.isfinite().all() for p in new.params.values())


def test_a_state_of_other_steps():
    ours = ftrain.make_steps(net, loss_fn, optim.sgd(0.1, 0.9))
    other = ftrain.make_steps(net, loss_fn, optim.adam(0.1))
    with pytest.raises(TypeError, match="start from the `init_state` that it returned together"):
        ours.train_step(other.init_state(0), BATCH)


def test_a_ragged_last_batch_names_both_loaders():
    double = ftrain.compile(lambda x: x * 2, backend="eager")
    double(torch.ones(4))
    with pytest.warns(
        ftrain.errors.RecompileWarning, match="last='pad' or 'drop' of .*drop_last=True"
    ):
        double(torch.ones(3))
