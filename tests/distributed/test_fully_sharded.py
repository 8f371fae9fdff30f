"""Test that sharded steps equal data-parallel steps, with 1/W of the state on each rank."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import bench, distributed, optim, transforms
from ftrain.core import tree
from ftrain.core._torch_collectives import Group, group_of
from ftrain.core.errors import ImpureFunctionError
from ftrain.testing import assert_same_bits
from tests.campaign import CAMPAIGN
from tests.distributed.ranks import run

WIDTH, WORDS = 12, 11


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.dropout(self.outer(F.gelu(self.inner(self.norm(x)))), 0.1, self.training)


class Language(nn.Module):
    """Language model whose embedding and output layer have the same weight."""

    def __init__(self, width: int = WIDTH, blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.output = nn.Linear(width, WORDS)
        self.output.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.output(x * self.scale)


def loss_fn(model: Any, batch: Any) -> Any:
    losses = F.cross_entropy(
        model(batch["x"]).flatten(0, 1), batch["y"].flatten(), reduction="none"
    )
    return ftrain.Mean((losses * batch["mask"].flatten()).sum(), batch["mask"].sum())


def batch_of(seed: int, rows: int = 8) -> Any:
    """Return the batch of all ranks, whose rows have different numbers of tokens that count."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(WORDS, (rows, 5), generator=generator)
    lengths = torch.randint(1, 6, (rows, 1), generator=generator)
    return {"x": x, "y": (x + 1) % WORDS, "mask": (torch.arange(5) < lengths).float()}


def own_rows(batch: Any, group: Group) -> Any:
    return tree.map(lambda x: x.unflatten(0, (group.size, -1))[group.rank], batch)


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optim.chain(optim.clip_by_global_norm(0.5), optim.sgd(0.1, momentum=0.9)),
    "adamw": lambda: optim.chain(optim.clip_by_global_norm(0.5), optim.adamw(1e-2)),
    "muon": lambda: optim.muon(1e-2, ns_dtype=None),
    "adafactor": lambda: optim.adafactor(1e-2),
    "sam": lambda: optim.sam(optim.sgd(0.1), 0.05),
    "schedule-free": lambda: optim.schedule_free_adamw(1e-2),
}


class Setup(NamedTuple):
    optimizer: str = "adamw"
    precision: Any = "32-true"
    accumulate: int = 1
    backend: str | None = None
    is_hybrid: bool = False


def steps_of(setup: Setup, model: Any = Language) -> ftrain.Steps:
    return ftrain.make_steps(
        model,
        loss_fn,
        OPTIMIZERS[setup.optimizer](),
        precision=setup.precision,
        accumulate=setup.accumulate,
    )


def distance(a: Any, b: Any) -> float:
    """Return the norm of the difference of two trees over the norm of the first."""
    flat = [torch.cat([x.double().reshape(-1) for x in tree.leaves(t)]) for t in (a, b)]
    return ((flat[0] - flat[1]).norm() / flat[0].norm()).item()


#: Bounds on `distance` in float32: of a tree, whose entries round independently, and of one number.
TREE, NUMBER = 4e-7, 1e-6


def assert_close(error: dict[str, float], of: object) -> None:
    """Assert that metrics differ by at most `NUMBER`, and trees by at most `TREE`."""
    for name, value in error.items():
        assert value <= (NUMBER if name in ("metrics", "evaluation") else TREE), (name, value, of)


def errors(mesh: Any, setups: list[Setup], n: int) -> list[dict[str, float]]:
    """Return the distances from data-parallel states after `n` steps of each setup."""
    found = []
    for setup in setups:
        group = group_of(mesh)
        replicated = distributed.data_parallel(steps_of(setup), mesh)
        shards = mesh
        if setup.is_hybrid:
            names = ("replicate", "shard")
            shards = torch.distributed.init_device_mesh(
                "cpu", (group.size // 2, 2), mesh_dim_names=names
            )
        sharded = distributed.fully_sharded(steps_of(setup), shards)
        step = sharded.train_step
        if setup.backend is not None:
            step = ftrain.compile(step, backend=setup.backend, donate=True)
        expected, state = replicated.init_state(1), sharded.init_state(1)
        assert_same_bits(distributed.unshard(state, sharded), expected)
        error = {"metrics": 0.0}
        for i in range(n):
            batch = own_rows(batch_of(i), group)
            expected, metrics = replicated.train_step(expected, batch)
            state, got = step(state, batch)
            assert dict(got).keys() == dict(metrics).keys()
            error["metrics"] = max(
                error["metrics"],
                *(distance(metrics[k], got[k]) for k in dict(got) if k != "skipped"),
            )
            assert_same_bits(got["skipped"], metrics["skipped"])
        whole = distributed.unshard(state, sharded)
        assert_same_bits(distributed.shard(whole, sharded), state)
        assert_same_bits(
            (whole.step, whole.rng, whole.scaler), (expected.step, expected.rng, expected.scaler)
        )
        error["params"] = distance(expected.params, whole.params)
        error["opt_state"] = distance(expected.opt_state, whole.opt_state)
        batch = own_rows(batch_of(99), group)
        evaluated = sharded.eval_step(state, batch)["loss"]
        error["evaluation"] = distance(replicated.eval_step(expected, batch)["loss"], evaluated)
        found.append(error)
    return found


EAGER = [
    Setup("adamw", accumulate=2),
    Setup("muon"),
    Setup("adafactor"),
    Setup("schedule-free"),
    Setup("sam", accumulate=2),
    Setup("sgd", "16-mixed", 2),
    Setup("sgd", "bf16-mixed", 2),
]


@pytest.mark.parametrize(
    ("size", "setups"),
    [
        (2, EAGER),
        (4, [Setup("sgd"), Setup("adamw", is_hybrid=True)]),
        (1, [Setup("adamw")]),
        (2, [Setup("adamw", "16-mixed", 2, "eager")]),
        *([(2, [Setup("adamw", accumulate=2, backend="inductor")])] if CAMPAIGN else []),
    ],
    ids=["2-eager", "4-eager", "1-eager", "2-compiled", *(["2-inductor"] if CAMPAIGN else [])],
)
def test_fully_sharded_steps_equal_data_parallel_steps(size: int, setups: list[Setup]) -> None:
    for found in run(errors, size, setups, 5, timeout=200):
        for setup, error in zip(setups, found, strict=True):
            assert_close(error, setup)


def test_sharded_bfloat16_parameters_differ_from_replicated_ones_by_rounding_only() -> None:
    # Gradients are rounded to bfloat16 after the sum over ranks, not before: 2**-9 each.
    for (error,) in run(errors, 2, [Setup("sgd", "bf16-true")], 2):
        assert max(error.values()) <= 2**-7, error


def bytes_of(values: Any) -> int:
    return sum(x.nbytes for x in tree.leaves(values))


def sizes(mesh: Any) -> dict[str, tuple[int, int]]:
    steps = transforms.with_ema(steps_of(Setup("adamw"), functools.partial(Language, 16, 2)))
    sharded = distributed.fully_sharded(
        steps_of(Setup("adamw"), functools.partial(Language, 16, 2)), mesh
    )
    sharded = transforms.with_ema(sharded)
    whole, state = steps.init_state(0), sharded.init_state(0)
    for i in range(2):
        state, _ = sharded.train_step(state, own_rows(batch_of(i), group_of(mesh)))
    ema = distributed.unshard(state, sharded).extras["ema"]
    assert {n: x.shape for n, x in ema.items()} == {n: x.shape for n, x in whole.params.items()}
    names = ("params", "opt_state", "extras")
    return {
        name: (bytes_of(getattr(state, name)), bytes_of(getattr(whole, name))) for name in names
    }


@pytest.mark.parametrize("size", [2, 4])
def test_each_rank_stores_its_share_of_parameters_moments_and_averages(size: int) -> None:
    for found in run(sizes, size):
        for name, (mine, whole) in found.items():
            # Padding of 11 rows to 12, a parameter of one element, and scalars of the optimizer.
            assert mine <= whole / size * 1.1 + 64, (name, mine, whole)


def peaks(mesh: Any, backend: str | None) -> tuple[int, int, int]:
    """Return the bytes that a step allocates with and without units, and the bytes of one unit."""
    model = functools.partial(Language, 128, 4)
    unit = bytes_of(dict(Block(128).named_parameters()))
    found = []
    for units in ("blocks.*", "output"):
        sharded = distributed.fully_sharded(steps_of(Setup("sgd"), model), mesh, units=units)
        step = sharded.train_step
        if backend is not None:
            step = ftrain.compile(step, backend=backend, donate=True)
        state = sharded.init_state(0)
        batch = own_rows(batch_of(0), group_of(mesh))
        state, _ = step(state, batch)
        found.append(bench.allocated(functools.partial(step, state, batch)).peak)
    return (*found, unit)


def test_sharded_step_gathers_the_parameters_of_only_one_module_at_a_time() -> None:
    for with_units, without, unit in run(peaks, 2, None):
        # Without units, parameters and gradients of all four blocks are whole at one time.
        assert without - with_units >= 2 * unit, (with_units / unit, without / unit)


class Penalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x).tanh()
        return x


def penalized(model: Any, batch: Any) -> Any:
    penalty = sum(p.square().sum() for p in model.parameters())
    return model(batch).square().mean() + 0.1 * penalty


def read_outside(mesh: Any, loss: Any) -> float:
    make = functools.partial(ftrain.make_steps, Penalized, loss, optim.sgd(0.1))
    replicated = distributed.data_parallel(make(), mesh)
    sharded = distributed.fully_sharded(make(), mesh)
    batch = own_rows(torch.arange(16.0).reshape(4, 4) / 16, group_of(mesh))
    expected, _ = replicated.train_step(replicated.init_state(0), batch)
    state, _ = sharded.train_step(sharded.init_state(0), batch)
    return distance(expected.params, distributed.unshard(state, sharded).params)


class Double(torch.autograd.Function):
    """Autograd function that receives a parameter as an argument."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return 2 * grad


def doubled(model: Any, batch: Any) -> Any:
    return model(batch).square().mean() + Double.apply(model.blocks[0].weight).square().mean()


@pytest.mark.parametrize("loss", [penalized, doubled])
def test_parameters_of_a_sharded_module_that_the_loss_reads_directly_get_their_whole_gradient(
    loss: Any,
) -> None:
    assert max(run(read_outside, 2, loss)) <= 4e-7


class WritingBlock(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.mul_(2)
        return super().forward(x)


def written() -> nn.Module:
    model = Penalized()
    model.blocks = nn.ModuleList(WritingBlock(4, 4) for _ in range(2))
    return model


def writing(mesh: Any) -> str:
    batch = own_rows(torch.arange(16.0).reshape(4, 4) / 16, group_of(mesh))
    steps = ftrain.make_steps(written, lambda model, batch: model(batch).mean(), optim.sgd(0.1))
    sharded = distributed.fully_sharded(steps, mesh)
    try:
        sharded.train_step(sharded.init_state(0), batch)
    except (RuntimeError, ImpureFunctionError) as error:
        return str(error)
    return ""


def test_sharded_module_that_writes_to_its_parameters_is_refused() -> None:
    assert re.search("changed in place|modified inplace", run(writing, 2)[0])


def skipped(mesh: Any) -> tuple[int, bool]:
    sharded = distributed.fully_sharded(steps_of(Setup("adamw")), mesh)
    group = group_of(mesh)
    state, batch = sharded.init_state(0), own_rows(batch_of(0), group)
    if group.rank == 1:
        batch["mask"] = batch["mask"] * torch.inf
    new, metrics = sharded.train_step(state, batch)
    assert_same_bits((new.params, new.opt_state), (state.params, state.opt_state))
    return int(metrics["skipped"]), bool(new.step == state.step)


def test_non_finite_gradient_on_one_rank_skips_the_sharded_step_on_all_ranks() -> None:
    assert run(skipped, 2) == [(1, True), (1, True)]


class Hooked(Language):
    def __init__(self) -> None:
        super().__init__()
        self.scale.register_hook(lambda grad: grad)


def refusals(mesh: Any) -> dict[str, str]:
    sharded = distributed.fully_sharded(steps_of(Setup()), mesh)
    batch = own_rows(batch_of(0), group_of(mesh))
    whole = steps_of(Setup()).init_state(0)
    ema = transforms.with_ema(steps_of(Setup()))
    sophia = ftrain.make_steps(Language, loss_fn, optim.sophia(1e-3))
    second = distributed.fully_sharded(sophia, mesh)
    calls: dict[str, Callable[[], Any]] = {
        "whole state": lambda: sharded.train_step(whole, batch),
        "unshard of a whole state": lambda: distributed.unshard(whole, sharded),
        "shard of a part": lambda: distributed.shard(sharded.init_state(0), sharded),
        "wrapped": lambda: distributed.fully_sharded(ema, mesh),
        "twice": lambda: distributed.fully_sharded(sharded, mesh),
        "not steps": lambda: distributed.fully_sharded(loss_fn, mesh),
        "units": lambda: distributed.fully_sharded(steps_of(Setup()), mesh, units="layers.*"),
        "no forward": lambda: distributed.fully_sharded(steps_of(Setup()), mesh, units="blocks"),
        "hook": lambda: distributed.fully_sharded(steps_of(Setup(), Hooked), mesh),
        "value_fn": lambda: second.train_step(second.init_state(0), batch),
        "not sharded": lambda: distributed.unshard(whole, steps_of(Setup())),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except (TypeError, ValueError, NotImplementedError) as error:
            found[name] = str(error)
    return found


def test_fully_sharded_refuses_unsupported_states_steps_and_models_with_a_remedy() -> None:
    found = run(refusals, 2)[0]
    expected = {
        "whole state": "distributed.shard",
        "unshard of a whole state": "distributed.shard",
        "shard of a part": "not sharded yet",
        "wrapped": "then apply the transformation",
        "twice": "parallel or wrapped already",
        "not steps": "make_steps",
        "units": "'layers.*'",
        "no forward": "has no `forward`",
        "hook": "hook on 'scale'",
        "value_fn": "data_parallel",
        "not sharded": "fully_sharded",
    }
    assert found.keys() == expected.keys()
    for name, words in expected.items():
        assert re.search(re.escape(words), found[name]), (name, found[name])
