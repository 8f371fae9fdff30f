"""Test that the laws of a step hold for steps on ranks that each have a part of the state."""

from __future__ import annotations

from typing import Any

import pytest

from ftrain import distributed
from ftrain.core._torch_collectives import group_of
from tests.distributed.ranks import run
from tests.distributed.test_fully_sharded import Setup, batch_of, own_rows, steps_of
from tests.distributed.training import broken_laws


def laws(mesh: Any, options: dict[str, Any]) -> list[str]:
    """Return the reports of laws 1 to 4, 6, 7, 9 and 10 that do not hold on this rank."""
    steps = distributed.fully_sharded(steps_of(Setup("adamw")), mesh, **options)
    batches = [own_rows(batch_of(i), group_of(mesh)) for i in range(3)]
    return broken_laws(steps, batches)


@pytest.mark.parametrize("options", [{"prefetch": True}, {"logical_shards": 2}], ids=str)
def test_laws_hold_for_fully_sharded_steps_on_two_ranks(options: dict[str, Any]) -> None:
    assert run(laws, 2, options, timeout=200) == [[], []]
