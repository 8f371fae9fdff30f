"""Bytes that a step sends, by the formulas of the guide."""

from __future__ import annotations

import pytest
import torch

from ftrain import distributed
from ftrain.core import tree
from ftrain.core._torch_fake_ranks import Traffic, fake_mesh
from tests.distributed.test_fully_sharded import Language, Setup, batch_of, steps_of


@pytest.mark.parametrize("strategy", ["data_parallel", "fully_sharded"])
def test_traffic_formula_equals_the_bytes_that_the_collectives_of_a_step_send(
    strategy: str,
) -> None:
    ranks, share = 4, 3 / 4

    def padded(x: torch.Tensor) -> int:
        return -(-x.shape[0] // ranks) * ranks * (x.numel() // x.shape[0])

    params = dict(Language().named_parameters())
    inside = [x for name, x in params.items() if name.startswith("blocks.")]
    outside = [x for name, x in params.items() if not name.startswith("blocks.")]
    small = [x for x in outside if x.shape[0] < ranks]
    with fake_mesh(ranks, "cpu") as mesh:
        steps = getattr(distributed, strategy)(steps_of(Setup()), mesh)
        batch = tree.map(lambda x: x[:2], batch_of(0))
        traffic = Traffic(ranks)
        state = steps.init_state(0)
        with traffic.counted():
            steps.train_step.gradients(state, batch)
    if strategy == "data_parallel":
        expected = 8 * sum(x.numel() for x in params.values()) * share
    else:
        expected = 12 * sum(map(padded, inside)) * share
        expected += 8 * sum(padded(x) for x in outside if x.shape[0] >= ranks) * share
        expected += 8 * sum(x.numel() for x in small) * share
    # Besides these: weights, metrics and the finite check, a few numbers each.
    assert expected <= traffic.sent <= expected + 400, (expected, traffic.sent)
