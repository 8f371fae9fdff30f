"""Results of each micro-batch by itself equal those of separate calls, stacked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ftrain.core import random, tree
from ftrain.core._each_micro_batch import each_micro_batch
from ftrain.core.accumulate import MicroBatches, Separate, Stacked, Sums, split_batch
from ftrain.core.metrics import Mean, Metrics

KEYS = random.split(random.key(0), 3)
BATCHES = [{"x": torch.randn(4, 2), "scale": 3} for _ in range(3)]
BUFFERS = {"level": torch.full((), 5.0)}


def of_part(buffers: Any, key: Tensor, batch: Any, weight: Tensor | None) -> Sums:
    assert batch["x"].storage_offset() == 0  # in memory of its own
    total = batch["x"].sum() * batch["scale"] + buffers["level"] + random.normal(key)
    count = torch.tensor(4.0) if weight is None else weight
    return Sums(
        {"total": total},
        count.to(torch.float32),
        {"level": buffers["level"] + 1},
        Metrics({"loss": Mean(total, torch.tensor(4.0))}),
    )


def stacked(weights: tuple[float, ...]) -> Stacked:
    leaves, structure = tree.flatten(BATCHES[0])
    (place,) = (i for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor))
    tensors = [torch.stack([batch["x"] for batch in BATCHES])]
    return Stacked(tensors, structure, {place: 3}, 3, weights)


@pytest.mark.parametrize("weights", [(), (1.0, 2.5, 4.0)])
@pytest.mark.parametrize("make", [stacked, lambda weights: Separate(tuple(BATCHES), weights)])
def test_stacked_results_of_micro_batches_equal_those_of_separate_calls(
    make: Any, weights: tuple[float, ...]
) -> None:
    found = each_micro_batch(of_part, BUFFERS, KEYS, make(weights))
    for i, batch in enumerate(BATCHES):
        weight = torch.tensor(weights[i]) if weights else None
        alone = of_part(BUFFERS, KEYS[i], batch, weight)
        row = tree.map(lambda x, i=i: x[i], found)
        for ours, expected in zip(tree.leaves(row), tree.leaves(alone), strict=True):
            assert torch.equal(ours, expected)
            assert ours.dtype == expected.dtype


def test_weight_of_a_micro_batch_has_the_dtype_of_its_totals() -> None:
    def in_float64(*given: Any) -> Sums:
        found = of_part(*given)
        return found._replace(totals={"total": found.totals["total"].double()})

    found = each_micro_batch(in_float64, BUFFERS, KEYS, Separate(tuple(BATCHES)))
    assert found.weight.dtype == torch.float64


def test_single_stacked_micro_batch_keeps_its_leading_axis() -> None:
    one = stacked(())
    one = Stacked([one.tensors[0][:1]], one.structure, one.constants, 1)
    assert each_micro_batch(of_part, BUFFERS, KEYS[:1], one).weight.shape == (1,)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0), (1.0, 0.0), (1.0, -2.0)], ids=str)
def test_micro_batches_need_one_positive_weight_each(weights: tuple[float, ...]) -> None:
    batch = MicroBatches((torch.zeros(3), torch.zeros(5)), weights=weights)
    with pytest.raises(ValueError, match="one positive weight for each of 2 batches, got"):
        split_batch(batch, 2)
