"""Test that sums of gradients start during the backward pass of a compiled step."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._inductor.utils import run_and_get_code

import ftrain
from ftrain import optim
from ftrain.core._torch_fake_ranks import fake_mesh
from ftrain.core.compile._early_reductions import start_reductions_early
from ftrain.distributed import data_parallel

aten, collectives = torch.ops.aten, torch.ops._c10d_functional
WIDTH, LAYERS = 512, 4  # the gradients of a layer are a little more than the first bucket


def model() -> nn.Module:
    layers = [(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(LAYERS)]
    return nn.Sequential(*[module for layer in layers for module in layer])


def loss_fn(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = module(x).square().mean()
    return loss


def letters(names: list[str]) -> str:
    """Return the order of a program: "m" for a product, "s" for a sum that starts, "w" for a wait."""
    found = {"all_reduce": "s", "wait_tensor": "w", "mm": "m", "linear_pointwise": "m"}
    return "".join(next((x for key, x in found.items() if key in name), "") for name in names)


@pytest.mark.parametrize("donate", [False, True])
def test_the_first_sum_starts_before_the_last_products(donate: bool) -> None:
    with fake_mesh(4, "cpu") as mesh:
        steps = data_parallel(ftrain.make_steps(model, loss_fn, optim.adamw(1e-3)), mesh)
        step = ftrain.compile(steps.train_step, backend="eager", donate=donate)
        graph = step.graph(steps.init_state(0), torch.ones(8, WIDTH)).graph
    order = letters([str(node.target) for node in graph.nodes])
    first, last = order.index("s"), order.rindex("s")
    # Forward products and two of the last layer; then two of each layer, one of the first.
    assert order[:first] == "m" * (LAYERS + 2)
    assert order[first:last].count("m") == 2 * (LAYERS - 2) + 1
    assert order[last:].startswith("sww")


def test_inductor_keeps_that_order() -> None:
    with fake_mesh(4, "cpu") as mesh:
        steps = data_parallel(ftrain.make_steps(model, loss_fn, optim.sgd(1e-3)), mesh)
        step = ftrain.compile(steps.train_step)
        _, codes = run_and_get_code(step, steps.init_state(0), torch.ones(8, WIDTH))
    lines = [x for x in codes[0].partition("def call(")[2].splitlines() if "#" not in x]
    # Names of fused kernels may hold "mm"; the products of one layer may come before the sum.
    order = letters([x for x in lines if not re.search("_default = |def |cpp_fused", x)])
    assert re.search("sm{2,5}sww", order), order


def test_only_light_operators_move_and_none_moves_across_a_write() -> None:
    def calls(write: bool) -> list[str]:
        graph = fx.Graph()
        x, y = graph.placeholder("x"), graph.placeholder("y")

        def call(name: str, target: Any, *args: Any) -> fx.Node:
            return graph.call_function(target, args, name=name)

        product = call("product", aten.mm.default, x, x)
        other = call("other", aten.mm.default, y, y)
        if write:
            call("write", aten.add_.Tensor, y, x)
        doubled = call("doubled", aten.mul.Tensor, product, product)
        sent = call("sent", collectives.all_reduce.default, doubled, "sum", "0")
        waited = call("waited", collectives.wait_tensor.default, sent)
        late = call("late", collectives.all_reduce.default, other, "sum", "0")
        graph.output((waited, other, late))
        start_reductions_early(graph)
        graph.lint()
        return [node.name for node in graph.nodes if node.op == "call_function"]

    assert calls(write=False) == ["product", "doubled", "sent", "other", "late", "waited"]
    stayed = ["product", "other", "write", "doubled", "sent", "late", "waited"]
    assert calls(write=True) == stayed


def test_collectives_keep_their_order() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    gathered = graph.call_function(collectives.all_gather_into_tensor.default, (x, 2, "0"))
    product = graph.call_function(aten.mm.default, (x, x))
    sent = graph.call_function(collectives.all_reduce.default, (x, "sum", "0"))
    ends = [graph.call_function(collectives.wait_tensor.default, (n,)) for n in (gathered, sent)]
    graph.output((*ends, product))
    start_reductions_early(graph)
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert calls[:3] == [gathered, sent, product]
