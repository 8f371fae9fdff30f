"""Test that `logical_shards` gives the same bits for every number of ranks, dropout included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import testing
from ftrain.distributed._logical_shards import pairwise_sum, sequential_sum
from tests.campaign import CAMPAIGN
from tests.distributed.ranks import run
from tests.distributed.training import Setup, alone, on_ranks

RELATIVE = 4e-7  # as in test_data_parallel.py

SHORT = [
    Setup("convnet", steps=5, shards=4),
    Setup("gpt", precision="16-mixed", steps=5, shards=8),
    Setup("mlp", steps=5, shards=4, backend="eager"),
    Setup("mlp", steps=5, shards=12, rows=24),  # not a power of two
]
EVERY = [
    Setup(model, precision, backend=backend, shards=shards, rows=24)
    for model in ("mlp", "convnet", "gpt")
    for precision in ("32-true", "bf16-mixed", "16-mixed")
    for backend in (None, "eager", "inductor")
    for shards in (4, 8, 12)
]


@pytest.mark.parametrize("setup", EVERY if CAMPAIGN else SHORT, ids=str)
def test_logical_shards_give_the_same_bits_for_every_number_of_ranks(setup: Setup) -> None:
    (expected,) = run(on_ranks, 1, setup, timeout=300)
    for ranks in (2, 4):
        for outcome in run(on_ranks, ranks, setup, timeout=300):
            testing.assert_same_bits(tuple(outcome), tuple(expected))


@pytest.mark.parametrize("model", ["convnet", "gpt"])
def test_logical_shards_match_the_micro_batches_of_one_process(model: str) -> None:
    setup = Setup(model, steps=5, shards=4)
    (found,), expected = run(on_ranks, 1, setup), alone(setup, 4)
    testing.assert_close_norm(found.states[-1].params, expected.states[-1].params, RELATIVE)
    testing.assert_close_norm(found.states[-1].buffers, expected.states[-1].buffers, RELATIVE)
    testing.assert_close_norm(found.metrics, expected.metrics, RELATIVE)


@settings(max_examples=50)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=16, max_size=16))
def test_pairwise_sum_of_block_sums_has_the_bits_of_the_whole_sum(values: Any) -> None:
    whole = torch.tensor(values, dtype=torch.float32)
    for ranks in (1, 2, 4, 8, 16):
        blocks = torch.stack([pairwise_sum(x) for x in whole.view(ranks, -1)])
        testing.assert_same_bits(pairwise_sum(blocks), pairwise_sum(whole))
    exact = float(whole.double().sum())
    # Each of the additions rounds by at most 2^-24 of a partial sum.
    bound = 16 * 2**-24 * float(whole.double().abs().sum())
    assert abs(float(pairwise_sum(whole)) - exact) <= bound
    assert abs(float(sequential_sum(whole)) - exact) <= bound
