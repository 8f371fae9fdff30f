"""Test steps that inductor compiles on two ranks against eager steps of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ftrain
from ftrain import distributed, optim
from ftrain.core._torch_collectives import group_of
from ftrain.testing import assert_close_norm, assert_same_bits
from tests.campaign import choice
from tests.distributed.ranks import run
from tests.distributed.test_fully_sharded import TREE, own_rows
from tests.distributed.test_sharded_runs import Net

ROWS = torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(0))  # of three steps
METRICS = ("loss", "grad_norm")


def steps_of(accumulate: int) -> ftrain.Steps:
    def loss_fn(model: Any, batch: Any) -> ftrain.Mean:
        return ftrain.Mean((model(batch) - 1).square().sum(), (batch > 0).sum().float())

    optimizer = optim.chain(optim.clip_by_global_norm(0.5), optim.sgd(0.1, momentum=0.9))
    return ftrain.make_steps(Net, loss_fn, optimizer, accumulate=accumulate)


def trained(mesh: Any, strategy: str) -> Any:
    """Return the whole state after compiled steps, their metrics, and the loss of an evaluation."""
    steps = getattr(distributed, strategy)(steps_of(1), mesh)
    step = ftrain.compile(steps.train_step, donate=True)
    state, found = steps.init_state(0), []
    for batch in ROWS:
        state, metrics = step(state, own_rows(batch, group_of(mesh)))
        found += [metrics[name].clone() for name in METRICS]
    found.append(steps.eval_step(state, own_rows(ROWS[0], group_of(mesh)))["loss"])
    if strategy == "fully_sharded":
        state = distributed.unshard(state, steps)
    return (state.params, state.opt_state, state.step), found


@pytest.mark.inductor
@pytest.mark.parametrize("strategy", choice(["fully_sharded"], ["data_parallel", "fully_sharded"]))
def test_machine_code_on_two_ranks_equals_eager_steps_of_one_process(strategy: str) -> None:
    first, second = run(trained, 2, strategy, timeout=300)
    assert_same_bits(first, second)
    steps = steps_of(accumulate=2)
    state, expected = steps.init_state(0), []
    for batch in ROWS:
        state, metrics = steps.train_step(state, batch)
        expected += [metrics[name] for name in METRICS]
    expected.append(steps.eval_step(state, ROWS[0])["loss"])
    assert_close_norm(first, ((state.params, state.opt_state, state.step), expected), TREE)
