"""Test when parameters of units are gathered, in the order of calls, and how many are whole at once."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import ftrain
from ftrain import distributed, optim
from ftrain.core import tree
from ftrain.core._torch_collectives import group_of
from ftrain.core._torch_fake_ranks import fake_mesh
from ftrain.testing import assert_same_bits
from tests.campaign import long
from tests.distributed.ranks import run
from tests.distributed.test_fully_sharded import (
    Block,
    Language,
    Setup,
    batch_of,
    bytes_of,
    own_rows,
    steps_of,
)

BLOCKS, WIDTH = 3, 32
UNIT = bytes_of(dict(Block(WIDTH).named_parameters()))
MODEL = functools.partial(Language, WIDTH, BLOCKS)
GATHER = "all_gather_into_tensor_coalesced"


class Calls(TorchDispatchMode):
    """Record of collectives, waits and products, and of the gathered bytes that are in memory.

    Attributes:
        names: a letter for each call: "g", a gather of a unit starts; "w", a rank waits for one; "m", a
            product.
        peak: the largest number of bytes of gathered parameters of units that existed at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.peak = 0
        self._gathered: list[tuple[Any, int]] = []
        self._waits: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name == GATHER and sum(x.nbytes for x in result) == UNIT:
            self.names.append("g")
            storages = [x.untyped_storage() for x in result]
            self._gathered += [(StorageWeakRef(x), x.nbytes()) for x in storages]
            self._waits |= {x.data_ptr() for x in result[:1]}
        elif name == "wait_tensor" and args[0].data_ptr() in self._waits:
            self._waits.discard(args[0].data_ptr())
            self.names.append("w")
        elif name in ("addmm", "mm", "bmm"):
            self.names.append("m")
        self._gathered = [(ref, n) for ref, n in self._gathered if not ref.expired()]
        self.peak = max(self.peak, sum(n for _, n in self._gathered))
        return result


def called(prefetch: bool, evaluates: bool, backend: str | None = None) -> Calls:
    with fake_mesh(2, "cpu") as mesh:
        steps = distributed.fully_sharded(
            steps_of(Setup("sgd"), MODEL), mesh, units="blocks.*", prefetch=prefetch
        )
        state, batch = steps.init_state(0), tree.map(lambda x: x[:4], batch_of(0))

        def gradients(state: Any, batch: Any) -> Any:
            grads = steps.train_step.gradients(state, batch).grads  # type: ignore[attr-defined]
            return [getattr(x, "local", x) for x in tree.leaves(grads)]

        function: Any = steps.eval_step.one_rank if evaluates else gradients  # type: ignore[attr-defined]
        if backend is not None:
            function = ftrain.compile(function, backend=backend)
            function(state, batch)
        calls = Calls()
        with calls:
            function(state, batch)
        return calls


@pytest.mark.parametrize("backend", [None, "eager"])
def test_sharded_module_is_gathered_while_the_module_before_it_runs(backend: str | None) -> None:
    forward = "".join(called(True, True, backend).names).rstrip("m")
    assert forward == "gw" + "g" + "mmw" + "g" + "mmw"
    both = "".join(called(True, False, backend).names)
    # The last product of the forward pass, and those of the backward pass of the output, come between.
    assert both.startswith("gwgmmwgmmwmm")
    backward = both.removeprefix("gwgmmwgmmw").lstrip("m")
    units = backward.split("w")[1:]
    assert [unit.lstrip("w")[:1] for unit in units] == ["g", "g", "m"]  # before any product
    assert all(unit.count("m") >= 4 for unit in units)


def test_without_prefetch_a_sharded_module_is_gathered_when_it_starts() -> None:
    forward = "".join(called(prefetch=False, evaluates=True).names).rstrip("m")
    assert forward == "gwmm" * (BLOCKS - 1) + "gw"


@pytest.mark.parametrize("evaluates", [True, False])
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("backend", [None, "eager"])
def test_whole_parameters_of_one_sharded_module_exist_at_a_time_and_of_two_with_prefetch(
    backend: str | None, prefetch: bool, evaluates: bool
) -> None:
    assert called(prefetch, evaluates, backend).peak == (2 if prefetch else 1) * UNIT


@long
def test_whole_parameters_of_one_sharded_module_exist_at_a_time_in_compiled_code() -> None:
    # A normalization's weight of the unit before is in memory when the next unit is gathered.
    assert called(prefetch=False, evaluates=False, backend="inductor").peak <= 1.02 * UNIT


def states(mesh: Any, backend: str | None) -> list[Any]:
    found = []
    for prefetch in (False, True):
        setup = Setup("adamw", accumulate=2)
        steps = distributed.fully_sharded(steps_of(setup, MODEL), mesh, prefetch=prefetch)
        step = steps.train_step
        if backend is not None:
            step = ftrain.compile(step, backend=backend, donate=True)
        state = steps.init_state(0)
        for i in range(2):
            state, _ = step(state, own_rows(batch_of(i), group_of(mesh)))
        evaluated = steps.eval_step(state, own_rows(batch_of(9), group_of(mesh)))
        found.append((tree.map(torch.clone, state), dict(evaluated)))
    return found


@pytest.mark.parametrize("backend", [None, "eager"])
def test_prefetch_does_not_change_bits(backend: str | None) -> None:
    for plain, early in run(states, 2, backend, timeout=120):
        assert_same_bits(early, plain)


class Branching(Language):
    """Model that runs its blocks in another order than it defines them, and skips one."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in (self.blocks[2], self.blocks[0]):
            x = block(x)
        return self.output(x * self.scale)


def branching(mesh: Any) -> list[Any]:
    found = []
    for prefetch in (False, True):
        steps = ftrain.make_steps(
            functools.partial(Branching, WIDTH, 3),
            lambda m, b: m(b["x"]).square().mean(),
            optim.sgd(0.1),
        )
        steps = distributed.fully_sharded(steps, mesh, units="blocks.*", prefetch=prefetch)
        state = steps.init_state(0)
        for i in range(2):
            state, _ = steps.train_step(state, own_rows(batch_of(i), group_of(mesh)))
        found.append(state)
    return found


def test_parameters_prefetched_for_a_module_that_does_not_run_do_not_change_the_bits() -> None:
    for plain, early in run(branching, 2):
        assert_same_bits(early, plain)
