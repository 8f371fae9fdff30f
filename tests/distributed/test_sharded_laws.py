"""Test that the laws of a step hold for steps on ranks that each have a part of the state."""

from __future__ import annotations

from typing import Any

import pytest

from ftrain import distributed
from ftrain.core._torch_collectives import group_of
from tests.distributed.ranks import run
from tests.distributed.test_fully_sharded import Setup, batch_of, own_rows, steps_of
from tests.distributed.test_tensor_parallel import GPT_RULES, batch_for
from tests.distributed.test_tensor_parallel import Setup as CutSetup
from tests.distributed.test_tensor_parallel import steps_of as cut_steps_of
from tests.distributed.training import broken_laws


def laws(mesh: Any, options: dict[str, Any]) -> list[str]:
    """Return the reports of laws 1 to 4, 6, 7, 9 and 10 that do not hold on this rank."""
    steps = distributed.fully_sharded(steps_of(Setup("adamw")), mesh, **options)
    batches = [own_rows(batch_of(i), group_of(mesh)) for i in range(3)]
    return broken_laws(steps, batches)


@pytest.mark.parametrize("options", [{"prefetch": True}, {"logical_shards": 2}], ids=str)
def test_laws_hold_for_fully_sharded_steps_on_two_ranks(options: dict[str, Any]) -> None:
    assert run(laws, 2, options, timeout=200) == [[], []]


def laws_of_cut_layers(mesh: Any) -> list[str]:
    """Return the reports of laws that do not hold on this rank for layers cut over ranks."""
    steps = distributed.tensor_parallel(cut_steps_of(CutSetup(), 1), mesh, GPT_RULES)
    return broken_laws(steps, [batch_for(CutSetup(), i) for i in range(3)])


def test_laws_hold_for_tensor_parallel_steps_on_two_ranks() -> None:
    assert run(laws_of_cut_layers, 2, timeout=200) == [[], []]
