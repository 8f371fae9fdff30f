"""Bytes that a step sends, by the formulas of the guide."""

from __future__ import annotations

import dataclasses
import sys
import threading
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ftrain import distributed
from ftrain.core import tree
from ftrain.core._torch_collectives import all_reduce, group_of
from ftrain.core._torch_fake_ranks import Traffic, fake_mesh
from ftrain.core.norm import global_norm
from ftrain.core.random._keyed_operators import KeyedOperators
from ftrain.distributed import _sharded_tensor
from ftrain.distributed._ordered import OrderedGroup
from ftrain.distributed._sharded_tensor import ShardedTensor
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


class Names(TorchDispatchMode):
    """Names of the functional collectives that run, also below operators on sharded tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, ShardedTensor) for t in types):
            return NotImplemented  # its own operators come next
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "_c10d_functional" and name != "wait_tensor":
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def collectives(blocks: int) -> Counter[str]:
    """Return how often a fully sharded step runs each collective."""
    with fake_mesh(4, "cpu") as mesh:
        given = steps_of(Setup(), lambda: Language(blocks=blocks))
        steps, names = distributed.fully_sharded(given, mesh), Names()
        state, batch = steps.init_state(0), tree.map(lambda x: x[:2], batch_of(0))
        with names:
            steps.train_step(state, batch)
    return names.found


def test_each_further_unit_adds_two_gathers_and_one_reduce_scatter_whatever_its_parameters() -> (
    None
):
    added = collectives(blocks=5) - collectives(blocks=2)
    # gloo sums each of several tensors in a collective of its own, so a unit sends one tensor.
    assert added == {"all_gather_into_tensor_coalesced": 6, "reduce_scatter_tensor": 3}


def test_collectives_run_once_while_another_thread_draws_random_numbers() -> None:
    stop, started = threading.Event(), threading.Event()

    def draw() -> None:
        while not stop.is_set():
            torch.rand(1)
            started.set()

    with fake_mesh(4, "cpu") as mesh:
        group, names = group_of(mesh), Names()
        thread = threading.Thread(target=draw)
        thread.start()
        try:
            started.wait()
            with names, KeyedOperators(None):
                for _ in range(200):
                    all_reduce(torch.ones(2), group)
        finally:
            stop.set()
            thread.join()
    assert names.found == {"all_reduce": 200}


def test_elementwise_operator_on_sharded_rows_takes_few_python_calls() -> None:
    with fake_mesh(2, "cpu") as mesh:
        x = ShardedTensor(torch.ones(2, 3), 4, group_of(mesh))
        x + x
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            x + x
        finally:
            sys.setprofile(None)
    assert calls < 40, calls  # 21 with torch 2.13


def test_norms_with_logical_shards_gather_one_tensor_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradients of a model together, whole, are the memory that shards save."""
    gathered: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    whole = _sharded_tensor.whole

    def counted(*args: Any) -> torch.Tensor:
        alive.append(sum(each() is not None for each in gathered))
        found = whole(*args)
        gathered.append(weakref.ref(found))
        return found

    monkeypatch.setattr(_sharded_tensor, "whole", counted)
    with fake_mesh(2, "cpu") as mesh:
        group = group_of(mesh)
        ordered = OrderedGroup(
            **{f.name: getattr(group, f.name) for f in dataclasses.fields(group)}
        )
        rows = [ShardedTensor(torch.ones(2, 3), 4, ordered) for _ in range(4)]
        global_norm(rows)
    assert len(gathered) == 4
    assert max(alive) <= 1


def test_traffic_counts_collectives_below_operators_on_sharded_tensors() -> None:
    with fake_mesh(4, "cpu") as mesh:
        rows = [ShardedTensor(torch.ones(2, 3), 8, group_of(mesh)) for _ in range(5)]
        traffic = Traffic(4)
        with traffic.counted():
            global_norm(rows)
            rows[0].amax()
    norms, whole = 4 * 5 * 4, 8 * 3 * 4  # bytes: 5 norms of 4 ranks, 8 rows of 3 numbers
    assert traffic.sent == 3 / 4 * (norms + whole)
    assert traffic.collectives == 2
