"""Steps that once failed on CUDA: numbers of the host, softmax under autocast, `nonfinite="raise"`."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim, tree
from tests.nullcuda.device import counted
from tests.zoo import ZOO


def on_cuda(value: Any) -> Any:
    return tree.map(lambda leaf: leaf.cuda(), value)


def step_twice(steps: ftrain.Steps, batch: Any, form: str) -> Any:
    """Return the counts of a second step; check that all its outputs are on the device."""
    step: Any = steps.train_step
    if form != "eager":
        step = ftrain.compile(step, backend="eager" if form == "traced" else "inductor")
    state, _ = step(on_cuda(steps.init_state(0)), batch)
    with counted() as counts:
        outputs = step(state, batch)
    assert all(leaf.is_cuda for leaf in tree.leaves(outputs))
    return counts


class Attention(nn.Module):
    """Attention written by hand: under autocast its softmax is float32, and its derivative float16."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self.query(x)[:, None].expand(-1, 4, -1)
        return self.out((F.softmax(query @ query.mT, -1) @ query).mean(1))


def with_host_numbers(model: Any, batch: Any) -> Any:
    """A loss whose weight and metrics are made on the host."""
    total = F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum")
    return ftrain.Mean(total, torch.tensor(8.0)), {"rows": 8, "host": torch.tensor(2.0)}


@pytest.mark.parametrize("form", ["eager", "traced", "inductor"])
def test_cpu_tensors_in_loss_and_metrics_are_copied_to_the_device_without_a_wait(form: str) -> None:
    steps = ftrain.make_steps(ZOO["mlp"].randomless, with_host_numbers, optim.sgd(0.1))
    assert step_twice(steps, on_cuda(ZOO["mlp"].batch(0, 8)), form).waits == 0


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_softmax_under_autocast_compiles_to_machine_code(precision: Any) -> None:
    steps = ftrain.make_steps(Attention, ZOO["mlp"].loss_fn, optim.adamw(1e-3), precision=precision)
    assert step_twice(steps, on_cuda(ZOO["mlp"].batch(0, 8)), "inductor").waits == 0


def test_step_that_raises_for_non_finite_gradients_compiles_to_machine_code() -> None:
    """The names of the leaves once broke inductor's comments."""
    steps = ftrain.make_steps(
        ZOO["mlp"].randomless, ZOO["mlp"].loss_fn, optim.sgd(0.1), nonfinite="raise"
    )
    step = ftrain.compile(steps.train_step)
    state, batch = on_cuda(steps.init_state(0)), on_cuda(ZOO["mlp"].batch(0, 8))
    # Memory holds what was there before, so that it may raise; the step reads once whether to.
    with counted() as counts, contextlib.suppress(ftrain.errors.NonFiniteError):
        step(state, batch)
    assert step.n_compiles == 1
    assert counts.to_host >= 1, counts
