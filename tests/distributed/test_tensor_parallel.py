"""Layers cut over ranks compute what they compute in one process."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import distributed, optim, transforms
from ftrain.core import tree
from ftrain.core._torch_collectives import group_of
from ftrain.core._torch_fake_ranks import Traffic
from ftrain.core.errors import ImpureFunctionError
from ftrain.testing import assert_same_bits
from tests.distributed.ranks import run
from tests.distributed.test_fully_sharded import (
    WORDS,
    assert_close,
    batch_of,
    bytes_of,
    distance,
    loss_fn,
    own_rows,
)

WIDTH, HEADS = 12, 2


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # Without a bias: a constant in all keys has no gradient, and Adam would amplify its rounding.
        self.inputs = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.outputs = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.inputs(x).unflatten(-1, (3, HEADS, -1)).movedim(-2, 1).unbind(-2)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.outputs(found.movedim(1, -2).flatten(-2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention = Attention()
        self.inner = nn.Linear(WIDTH, 25)  # which two ranks cannot share out evenly
        self.gate = nn.Linear(WIDTH, 25)
        self.outer = nn.Linear(25, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + F.dropout(self.attention(self.norms[0](x)), 0.1, self.training)
        y = self.norms[1](x)
        hidden = F.dropout(F.gelu(self.inner(y)) * self.gate(y), 0.1, self.training)
        return x + self.outer(hidden)


class GPT(nn.Module):
    """Blocks between an embedding and an output layer with the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.positions = nn.Embedding(5, WIDTH, padding_idx=0)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.output = nn.Linear(WIDTH, WORDS)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.output(x)


GPT_RULES = {
    "embedding": "row",
    "positions": "column",
    "blocks.*.attention.inputs": "column",
    "blocks.*.attention.outputs": "row",
    "blocks.*.inner": "column",
    "blocks.*.gate": "column",
    "blocks.*.outer": "row",
    "output": "column",
}
#: Layers in an order that gathers and cuts each time, and tied weights of which one is cut.
ODD_RULES = {"output": "row", "blocks.0.inner": "row", "blocks.1.outer": "column"}


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 9), nn.Linear(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(x)))


def mlp_loss(model: Any, batch: Any) -> torch.Tensor:
    penalty = sum(p.square().sum() for p in model.parameters())
    return (model(batch) - 1).square().mean() + 0.01 * penalty


MLP_RULES = {"inner": "column", "outer": "row"}


class Setup(NamedTuple):
    model: Any = GPT
    rules: Any = GPT_RULES
    precision: Any = "32-true"
    accumulate: int = 1
    backend: str | None = None
    optimizer: str = "adamw"
    data_ranks: int = 1


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adamw": lambda: optim.chain(optim.clip_by_global_norm(0.5), optim.adamw(1e-2)),
    "sgd": lambda: optim.chain(optim.clip_by_global_norm(0.5), optim.sgd(0.1, momentum=0.9)),
    "muon": lambda: optim.muon(1e-2, ns_dtype=None),
}


def steps_of(setup: Setup, accumulate: int) -> ftrain.Steps:
    loss = mlp_loss if setup.model is MLP else loss_fn
    return ftrain.make_steps(
        setup.model,
        loss,
        OPTIMIZERS[setup.optimizer](),
        precision=setup.precision,
        accumulate=accumulate,
    )


def batch_for(setup: Setup, seed: int) -> Any:
    if setup.model is MLP:
        return torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    return batch_of(seed)


def errors(mesh: Any, setups: list[Setup], n: int) -> list[dict[str, float]]:
    """Return the distances from one process after `n` steps of each setup."""
    found = []
    for setup in setups:
        whole = steps_of(setup, setup.accumulate * setup.data_ranks)
        axes, data = mesh, None
        if setup.data_ranks > 1:
            shape = (setup.data_ranks, mesh.size() // setup.data_ranks)
            names = ("data", "tensor")
            axes = torch.distributed.init_device_mesh("cpu", shape, mesh_dim_names=names)
            data = group_of(axes, 0)
        parallel = distributed.tensor_parallel(steps_of(setup, setup.accumulate), axes, setup.rules)
        step = parallel.train_step
        if setup.backend is not None:
            step = ftrain.compile(step, backend=setup.backend, donate=True)
        expected, state = whole.init_state(1), parallel.init_state(1)
        assert_same_bits(distributed.unshard(state, parallel), expected)
        worst = {"metrics": 0.0, "gradients": 0.0}

        def own(batch: Any, data: Any = data) -> Any:
            return batch if data is None else own_rows(batch, data)

        for i in range(n):
            batch = batch_for(setup, i)
            if i == 0 and setup.backend is None:
                grads = whole.train_step.gradients(expected, batch).grads  # type: ignore[attr-defined]
                result = parallel.train_step.gradients(state, own(batch)).grads  # type: ignore[attr-defined]
                gathered = tree.map(torch.clone, result)
                worst["gradients"] = distance(grads, gathered)
            expected, metrics = whole.train_step(expected, batch)
            state, got = step(state, own(batch))
            assert dict(got).keys() == dict(metrics).keys()
            for name in dict(got).keys() - {"skipped"}:
                worst["metrics"] = max(worst["metrics"], distance(metrics[name], got[name]))
        after = distributed.unshard(state, parallel)
        assert_same_bits(distributed.shard(after, parallel), state)
        assert_same_bits(
            (after.step, after.rng, after.scaler), (expected.step, expected.rng, expected.scaler)
        )
        worst["params"] = distance(expected.params, after.params)
        worst["opt_state"] = distance(expected.opt_state, after.opt_state)
        batch = batch_for(setup, 99)
        got = parallel.eval_step(state, own(batch))["loss"]
        worst["evaluation"] = distance(whole.eval_step(expected, batch)["loss"], got)
        found.append((worst, after))
    return found


@pytest.mark.parametrize(
    ("size", "setups"),
    [
        (
            2,
            [
                Setup(MLP, MLP_RULES),
                Setup(),
                Setup(accumulate=2, rules=ODD_RULES),
                Setup(optimizer="muon"),
            ],
        ),
        (4, [Setup(MLP, MLP_RULES), Setup(data_ranks=2, accumulate=2)]),
        (1, [Setup()]),
        (2, [Setup(backend="eager")]),
    ],
    ids=["2-eager", "4-eager", "1-eager", "2-compiled"],
)
def test_layers_cut_over_ranks_equal_those_of_one_process(size: int, setups: list[Setup]) -> None:
    by_rank = run(errors, size, setups, 5, timeout=200)
    for i, setup in enumerate(setups):
        assert_same_bits([found[i][1] for found in by_rank], [by_rank[0][i][1]] * size)
        for found in by_rank:
            assert_close(found[i][0], setup)


def test_layers_cut_over_ranks_in_half_precision_differ_by_rounding_only() -> None:
    # Products are rounded to bfloat16 (2**-9) on each rank before they are summed.
    setups = [
        Setup(precision="bf16-mixed", optimizer="sgd"),
        Setup(precision="16-mixed", optimizer="sgd"),
    ]
    for found in run(errors, 2, setups, 2):
        for worst, _ in found:
            assert worst["params"] <= 2**-9, worst
            assert worst["gradients"] <= 2**-5, worst


def traffic(mesh: Any) -> dict[str, Any]:
    """Return collectives and bytes of the gradients of an MLP, and the bytes of a state."""
    setup = Setup(MLP, MLP_RULES)
    steps = ftrain.make_steps(MLP, lambda m, b: m(b).square().mean(), optim.adamw(1e-2))
    parallel = transforms.with_ema(distributed.tensor_parallel(steps, mesh, MLP_RULES))
    state, batch = parallel.init_state(0), batch_for(setup, 0)
    counted = Traffic(mesh.size())
    with counted.counted():
        parallel.train_step.gradients(state, batch)  # type: ignore[attr-defined]
    state, _ = parallel.train_step(state, batch)
    whole = transforms.with_ema(steps).init_state(0)
    names = ("params", "opt_state", "extras")
    sizes = {
        name: (bytes_of(getattr(state, name)), bytes_of(getattr(whole, name))) for name in names
    }
    return {"collectives": counted.collectives, "sent": counted.sent, **sizes}


def test_mlp_cut_over_ranks_sums_its_output_once_and_stores_its_share_of_the_state() -> None:
    for found in run(traffic, 2):
        # The output (8 x 4) is summed. The rows of the last weight (2 x 10 on each rank, with padding)
        # are exchanged for columns, and so is its gradient: half of them travel. The input needs no
        # gradient. Besides these, finite check and norm take a number for each of three cut parameters.
        layer = 8 * 4 * 4 + 2 * (2 * 10 * 4) / 2
        assert layer <= found["sent"] <= layer + 64, found
        for name in ("params", "opt_state", "extras"):
            mine, whole = found[name]
            # Padding of 9 rows to 10, and the bias of the row-wise layer.
            assert mine <= whole / 2 * 1.1 + 64, (name, mine, whole)


class Written(MLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        x.mul_(2)
        return self.outer(x)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 9))
        self.table = nn.Embedding(4, 6, max_norm=1.0)
        self.conv = nn.Conv1d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def refusals(mesh: Any) -> dict[str, str]:
    def made(model: Any, rules: Any) -> Any:
        steps = ftrain.make_steps(model, lambda m, b: m(b).square().mean(), optim.adamw(1e-2))
        return distributed.tensor_parallel(steps, mesh, rules)

    right, batch = made(MLP, MLP_RULES), batch_for(Setup(MLP), 0)
    whole = steps_of(Setup(MLP), 1)
    writes = made(Written, MLP_RULES)
    table = distributed.tensor_parallel(steps_of(Setup(), 1), mesh, {"embedding": "row"})
    outside = tree.map(torch.clone, batch_for(Setup(), 0))
    outside["x"][0, 0] = WORDS if mesh.get_rank() == 1 else -1
    calls: dict[str, Callable[[], Any]] = {
        "no rules": lambda: made(MLP, {}),
        "unknown rule": lambda: made(MLP, {"inner": "columns"}),
        "no layer": lambda: made(MLP, {"hidden": "row"}),
        "two rules": lambda: made(MLP, {"inner": "row", "*": "column"}),
        "container": lambda: made(Normed, {"conv": "row"}),
        "computed weight": lambda: made(Normed, {"inner": "column"}),
        "max_norm": lambda: made(Normed, {"table": "row"}),
        "wrapped": lambda: distributed.tensor_parallel(transforms.with_ema(whole), mesh, MLP_RULES),
        "twice": lambda: distributed.tensor_parallel(right, mesh, MLP_RULES),
        "whole state": lambda: right.train_step(whole.init_state(0), batch),
        "write": lambda: writes.train_step(writes.init_state(0), batch),
        "index": lambda: table.eval_step(table.init_state(0), outside),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except (TypeError, ValueError, ImpureFunctionError, IndexError) as error:
            found[name] = str(error)
    return found


def test_model_that_cannot_be_cut_over_ranks_is_refused_with_a_remedy() -> None:
    expected = {
        "no rules": "'column' or 'row'",
        "unknown rule": "rules['inner']: expected 'column'",
        "no layer": "'hidden'",
        "two rules": "got 'column' and 'row' for 'inner'",
        "container": "got 'conv', Conv1d",
        "computed weight": "computed from others",
        "max_norm": "expected an embedding without max_norm",
        "wrapped": "then apply the transformation",
        "twice": "parallel or wrapped already",
        "whole state": "distributed.shard",
        "write": "output of a column-wise layer was changed in place",
        "index": "index out of range",
    }
    for found in run(refusals, 2):
        assert found.keys() == expected.keys()
        for name, words in expected.items():
            assert re.search(re.escape(words), found[name]), (name, found[name])
