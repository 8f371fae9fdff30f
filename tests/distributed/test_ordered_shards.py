"""Test that `logical_shards` of sharded states gives the same bits for every number of ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ftrain
from ftrain import distributed, optim, testing
from ftrain.core import tree
from ftrain.core._torch_collectives import group_of
from ftrain.distributed._ordered import halving_sum
from ftrain.distributed._sharded_tensor import ROUNDS_ALIKE, rounds_alike
from tests.distributed.ranks import run
from tests.distributed.test_fully_sharded import (
    Language,
    Penalized,
    Setup,
    batch_of,
    distance,
    loss_fn,
    own_rows,
    penalized,
    steps_of,
)

SHARDS = 4


def outcome(mesh: Any, setup: Setup, steps: int) -> Any:
    """Return whole states, metrics and an evaluation of this rank's part of a run."""
    group, grid = group_of(mesh), mesh
    if setup.is_hybrid and group.size > 2:
        names = ("replicate", "shard")
        shape = (group.size // 2, 2)
        grid = torch.distributed.init_device_mesh("cpu", shape, mesh_dim_names=names)
    sharded = distributed.fully_sharded(steps_of(setup), grid, logical_shards=SHARDS)
    step = sharded.train_step
    if setup.backend is not None:
        step = ftrain.compile(step, backend=setup.backend, donate=True)
    state = sharded.init_state(1)
    found = []
    for i in range(steps):
        state, metrics = step(state, own_rows(batch_of(i), group))
        whole = distributed.unshard(state, sharded)
        found.append((whole.params, whole.opt_state, whole.scaler, dict(metrics)))
    return found, dict(sharded.eval_step(state, own_rows(batch_of(99), group)))


@pytest.mark.parametrize(
    "setup",
    [
        Setup("adamw"),
        Setup("muon"),
        Setup("adafactor"),
        Setup("schedule-free"),
        Setup("sgd", "16-mixed"),
        Setup("sgd", is_hybrid=True),
        Setup("adamw", backend="eager"),
    ],
    ids=str,
)
def test_sharded_states_have_the_same_bits_for_every_number_of_ranks(setup: Setup) -> None:
    (expected,) = run(outcome, 1, setup, 3, timeout=200)
    for ranks in (2, 4):
        for found in run(outcome, ranks, setup, 3, timeout=200):
            testing.assert_same_bits(found, expected)


def distance_from_data_parallel(mesh: Any) -> float:
    (states, _), setup = outcome(mesh, Setup("adamw"), 3), Setup("adamw")
    replicated = distributed.data_parallel(steps_of(setup), mesh, logical_shards=SHARDS)
    state = replicated.init_state(1)
    for i in range(3):
        state, _ = replicated.train_step(state, own_rows(batch_of(i), group_of(mesh)))
    return distance(state.params, states[-1][0])


def test_sharded_states_with_logical_shards_equal_those_of_data_parallel() -> None:
    assert max(run(distance_from_data_parallel, 2)) <= 4e-7


class Twice(Language):
    """Model that calls its first block twice."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in (self.blocks[0], self.blocks[1], self.blocks[0]):
            x = block(x)
        return self.output(x * self.scale)


def refusals(mesh: Any) -> list[str]:
    def whole(model: Any, loss: Any, precision: str = "32-true") -> ftrain.Steps:
        return ftrain.make_steps(model, loss, optim.sgd(0.1), precision=precision)

    x = own_rows(torch.arange(16.0).reshape(4, 4) / 16, group_of(mesh))
    tokens = own_rows(batch_of(0), group_of(mesh))
    cases = [
        (whole(Penalized, penalized), 4, x),
        (whole(Twice, loss_fn), 4, tokens),
        (whole(Language, loss_fn), 6, tokens),
        (whole(Language, loss_fn), 3, tokens),
        (whole(Language, loss_fn, "bf16-true"), 4, tokens),
    ]
    found = []
    for steps, shards, batch in cases:
        try:
            sharded = distributed.fully_sharded(steps, mesh, logical_shards=shards)
            sharded.train_step(sharded.init_state(0), batch)
        except (ValueError, NotImplementedError) as error:
            found.append(str(error))
    return found


def test_sums_that_would_depend_on_the_number_of_ranks_are_refused() -> None:
    (outside, twice, power, multiple, narrow), _ = run(refusals, 2)
    assert "a second use of 'blocks." in outside
    assert "a second use of 'blocks.0." in twice
    assert "units=" in outside
    assert "expected a power of two for sharded states, got 6" in power
    assert "expected a positive multiple of the 2 ranks, got 3" in multiple
    assert "got torch.bfloat16" in narrow


@settings(max_examples=30)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=16, max_size=16))
def test_halving_sum_over_ranks_then_over_shards_equals_the_halving_sum_over_all_shards(
    values: Any,
) -> None:
    whole = torch.tensor(values, dtype=torch.float32)
    for ranks in (1, 2, 4, 8, 16):
        of_shards = torch.stack([halving_sum(x) for x in whole.view(ranks, -1).unbind(1)])
        testing.assert_same_bits(halving_sum(of_shards), halving_sum(whole))


def operands(name: str, x: Any, y: Any, z: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments of an elementwise operator, made of three tensors of one shape."""
    if name in ("addcmul", "addcdiv"):
        return (x, y, z), {"value": -0.37}
    if name in ("where", "masked_fill"):
        return ((x > 0, y, z), {}) if name == "where" else ((x, y > 0, 0.3), {})
    if name.startswith("clamp"):
        return ((x, -0.4, 0.7) if name == "clamp" else (x, 0.1)), {}
    if name.startswith("bitwise"):
        x, y = x > 0, y > 0
    is_unary = name.endswith("_not") or name in UNARY
    return ((x,) if is_unary else (x, y)), {}


UNARY = [
    "abs",
    "neg",
    "reciprocal",
    "relu",
    "sgn",
    "sign",
    "sqrt",
    "clone",
    "isfinite",
    "isinf",
    "isnan",
]


@pytest.mark.parametrize("name", sorted(ROUNDS_ALIKE))
def test_operators_on_parts_of_a_tensor_give_the_bits_of_the_whole(name: str) -> None:
    operator = getattr(torch.ops.aten, name)
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        inputs = [torch.randn(257, generator=generator).to(dtype) for _ in range(3)]
        args, options = operands(name, *inputs)
        whole = operator(*args, **options)
        for n in (1, 3, 7, 19, 64, 130):
            parts = []
            for part in zip(*(x.split(n) for x in inputs), strict=True):
                args, options = operands(name, *(x.clone() for x in part))
                parts.append(operator(*args, **options))
            testing.assert_same_bits(torch.cat(parts), whole)


@pytest.mark.parametrize("name", ["add", "sub", "rsub"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_add_with_alpha_by_rows_has_the_bits_of_the_whole_tensor_in_float32_but_not_in_16_bits(
    name: str, dtype: torch.dtype
) -> None:
    operator = getattr(torch.ops.aten, name).Tensor
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(257, generator=generator).to(dtype) for _ in range(2))
    runs = rounds_alike(operator, (x, y), {"alpha": 0.3})
    assert runs == (dtype is torch.float32)
    assert rounds_alike(operator, (x, y), {})
    if runs:
        pairs = zip(x.split(19), y.split(19), strict=True)
        parts = [operator(a.clone(), b.clone(), alpha=0.3) for a, b in pairs]
        testing.assert_same_bits(torch.cat(parts), operator(x, y, alpha=0.3))


class Recorded(nn.Module):
    """Linear layer whose rows two ranks cannot divide evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(7, 7) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).tanh()
        return x


def clipped(mesh: Any, clip: float) -> Any:
    optimizer = optim.chain(optim.clip_by_global_norm(clip), optim.adamw(1e-2))
    steps = ftrain.make_steps(Recorded, lambda m, x: m(x).square().mean(), optimizer)
    sharded = distributed.fully_sharded(steps, mesh, logical_shards=SHARDS)
    state = sharded.init_state(0)
    rows = torch.randn(8, 7, generator=torch.Generator().manual_seed(2))
    for _ in range(4):
        state, _ = sharded.train_step(state, own_rows(rows, group_of(mesh)))
    return tree.map(torch.clone, distributed.unshard(state, sharded))


@pytest.mark.parametrize("clip", [1e-3, 10.0])
def test_clipped_norms_of_padded_shards_have_the_bits_of_one_process(clip: float) -> None:
    (expected,) = run(clipped, 1, clip)
    for ranks in (2, 4):
        testing.assert_same_bits(run(clipped, ranks, clip), [expected] * ranks)
