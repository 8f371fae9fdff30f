"""Test that any partition of a batch over ranks gives exactly the metrics of the whole batch."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import distributed, optim, testing
from ftrain.core import tree
from ftrain.core._torch_wrapper import plain
from ftrain.core.metrics import Max, Min, PerExample, Sum
from tests.campaign import examples
from tests.distributed.ranks import run

Strategy = Literal["data_parallel", "fully_sharded"]
STRATEGIES: list[Strategy] = ["data_parallel", "fully_sharded"]


class Weighted(nn.Module):
    """Product of the input and the sum of five weights, which two or four ranks cannot divide evenly."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.sum() * x


def model() -> nn.Module:
    return nn.Sequential(Weighted(1.0, -2.0, 3.0, 2.0, -1.0), Weighted(2.0, 0.0, -3.0, 1.0, 2.0))


def loss_fn(model: Any, batch: Any) -> Any:
    """Return sums of whole numbers, which float32 adds without rounding."""
    y, w = model(batch["x"]), batch["w"]
    metrics = {
        "mean": ftrain.Mean(y.sum(), torch.tensor(float(len(y)))),
        "sum": Sum((y > 0).sum()),
        "max": Max(y.amax()),
        "min": {"nested": Min(y.amin())},
    }
    if "each" in batch:
        metrics["each"] = PerExample(y)
    return ftrain.Mean((y * w).sum(), w.sum()), metrics


def steps_of() -> ftrain.Steps:
    return ftrain.make_steps(model, loss_fn, optim.sgd(0.5))


def of_rank(mesh: Any, strategy: Strategy, parts: list[list[Any]]) -> Any:
    """Return whole gradients, and training and evaluation metrics, of this rank's micro-batches."""
    steps = getattr(distributed, strategy)(steps_of(), mesh)
    own = parts[mesh.get_local_rank()]
    state = steps.init_state(0)
    result = steps.train_step.gradients(state, ftrain.MicroBatches(tuple(own)))
    evaluated = [steps.eval_step(state, part) for part in own]
    return tree.map(plain, result.grads), result.metrics, evaluated


@st.composite
def partitions(draw: Any) -> tuple[Any, list[list[Any]]]:
    """Draw a batch, and its rows as the micro-batches of 1, 2 or 4 ranks."""
    ranks, k = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 3))
    is_even = draw(st.booleans())
    rows = draw(st.integers(1, 3))
    sizes = [rows if is_even else draw(st.integers(1, 4)) for _ in range(ranks * k)]
    n = sum(sizes)
    numbers = st.lists(st.integers(-9, 9), min_size=n, max_size=n)
    weights = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    if ranks > 1:
        absent = draw(st.sampled_from([None, *range(ranks)]))  # a rank of weight 0
        if absent is not None:
            first, last = sum(sizes[: absent * k]), sum(sizes[: (absent + 1) * k])
            weights[first:last] = [0] * (last - first)
    assume(any(weights))
    batch = {"x": torch.tensor(draw(numbers)).float(), "w": torch.tensor(weights).float()}
    if is_even:
        batch["each"] = torch.arange(n)
    columns = [x.split(sizes) for x in batch.values()]
    cut = [dict(zip(batch, part, strict=True)) for part in zip(*columns, strict=True)]
    return batch, [cut[r * k : (r + 1) * k] for r in range(ranks)]


def assert_same_as_whole(strategy: Strategy, batch: Any, parts: list[list[Any]]) -> None:
    """Assert that ranks with parts of a batch find its gradients and its metrics."""
    steps = steps_of()
    state = steps.init_state(0)
    expected, evaluation = steps.train_step.gradients(state, batch), steps.eval_step(state, batch)
    for grads, metrics, evaluated in run(of_rank, len(parts), strategy, parts):
        # A micro-batch divides by its own weight first, for float16: that rounds.
        testing.assert_close_norm(grads, expected.grads, 4e-7)
        whole = evaluated[0]
        for latest in evaluated[1:]:
            whole = whole.merge(latest)
        for name in evaluation:
            if name != "each" or len(parts) == 1 or len(parts[0]) == 1:
                testing.assert_same_bits(whole[name], evaluation[name])
            testing.assert_same_bits(metrics[name], expected.metrics[name])


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=examples(15, 100))
@given(partitions())
def test_any_partition_of_a_batch_over_ranks_has_the_metrics_of_the_whole_batch(
    strategy: Strategy, drawn: Any
) -> None:
    assert_same_as_whole(strategy, *drawn)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("absent", [0, 1])
def test_rank_of_weight_zero_changes_neither_gradients_nor_the_loss(
    strategy: Strategy, absent: int
) -> None:
    weights = [[1.0, 2.0], [0.0], [3.0], [1.0]]
    weights[2 * absent] = [0.0] * len(weights[2 * absent])
    weights[2 * absent + 1] = [0.0]
    values = [[3.0, -4.0], [9.0], [5.0], [-7.0]]
    parts = [
        {"x": torch.tensor(x), "w": torch.tensor(w)} for x, w in zip(values, weights, strict=True)
    ]
    batch = {name: torch.cat([part[name] for part in parts]) for name in ("x", "w")}
    assert_same_as_whole(strategy, batch, [parts[:2], parts[2:]])
