"""Test collectives in eager and traced functions, and the pool of ranks that runs the tests."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch

import ftrain
from ftrain.core._torch_collectives import (
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    group_of,
    reduce_scatter,
)
from tests.campaign import long
from tests.distributed.ranks import RankError, run


def each_collective(mesh: Any, is_compiled: bool) -> dict[str, torch.Tensor]:
    group = group_of(mesh)

    def fn(x: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "sum": all_reduce(x, group),
            "max": all_reduce(x, group, "max"),
            "min": all_reduce(x, group, "min"),
            "gathered": all_gather(x, group),
            "gathered_number": all_gather(x[0], group),
            "scattered": reduce_scatter(rows, group),
            "exchanged": all_to_all(rows, group),
            "sent": broadcast(x, group, group.size - 1),
            "transposed": all_reduce(rows.mT, group),
        }

    x = torch.arange(3.0) + 10 * group.rank
    rows = torch.arange(2.0 * group.size).reshape(group.size, 2) + 100 * group.rank
    if is_compiled:
        fn = ftrain.compile(fn, backend="eager")
    return fn(x, rows)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_collectives_reduce_gather_scatter_exchange_and_broadcast(
    size: int, is_compiled: bool
) -> None:
    results = run(each_collective, size, is_compiled)
    xs = torch.stack([torch.arange(3.0) + 10 * r for r in range(size)])
    rows = torch.stack([torch.arange(2.0 * size).reshape(size, 2) + 100 * r for r in range(size)])
    for rank, found in enumerate(results):
        expected = {
            "sum": xs.sum(0),
            "max": xs.amax(0),
            "min": xs.amin(0),
            "gathered": xs,
            "gathered_number": xs[:, 0],
            "scattered": rows.sum(0)[rank],
            "exchanged": rows[:, rank],
            "sent": xs[-1],
            "transposed": rows.sum(0).mT,
        }
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def raises_on_rank_one(mesh: Any, waits: bool) -> int:
    group = group_of(mesh)
    if group.rank == 1:
        raise LookupError("a reason")
    if waits:
        all_reduce(torch.ones(1), group)
    return group.rank


def sleeps_on_rank_zero(mesh: Any) -> None:
    if group_of(mesh).rank == 0:
        time.sleep(600)


def ends_on_rank_zero(mesh: Any) -> None:
    if group_of(mesh).rank == 0:
        os._exit(3)


def rank_of(mesh: Any) -> int:
    return group_of(mesh).rank


def test_pool_of_ranks_names_the_rank_that_raised() -> None:
    with pytest.raises(RankError, match=r"rank 1 of .*\n(.*\n)*.*LookupError: a reason"):
        run(raises_on_rank_one, 2, False)
    assert run(rank_of, 4) == [0, 1, 2, 3]


@long  # each part of this test starts another pool
def test_pool_of_ranks_raises_for_ranks_that_hang_or_exit_and_works_again() -> None:
    with pytest.raises(RankError, match=r"rank 1 of (.*\n)*.*LookupError: a reason"):
        run(raises_on_rank_one, 2, True)
    with pytest.raises(RankError, match="rank 0 .*did not return in time"):
        run(sleeps_on_rank_zero, 1, timeout=1.0)
    with pytest.raises(RankError, match="rank 0 .*ended, exit code 3"):
        run(ends_on_rank_zero, 1)
    assert run(rank_of, 2) == [0, 1]
