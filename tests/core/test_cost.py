"""FLOPs, bytes and kernels of calls, against counts by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ftrain
from ftrain import optim
from ftrain.core.cost import rates
from ftrain.core.cost._flops import Work, floating_dtype, graph_work
from ftrain.core.cost._kernels import kernels_of
from ftrain.core.cost.rates import Rates, fastest_product

CPU = torch.device("cpu")


def counted(fn: Any, *args: Any) -> dict[str, int]:
    """Return the FLOPs of a function's traced graph, by dtype."""
    total: dict[str, int] = {}
    for work in graph_work(ftrain.compile(fn).graph(*args)).values():
        for dtype, flops in work.flops.items():
            total[dtype] = total.get(dtype, 0) + flops
    return total


X, W, B = torch.ones(4, 6), torch.ones(6, 5), torch.ones(5)
IMAGE, FILTER = torch.ones(2, 3, 8, 8), torch.ones(7, 3, 3, 3)
HEADS = torch.ones(2, 3, 8, 16)


@pytest.mark.parametrize(
    ("fn", "args", "flops"),
    [
        (torch.matmul, (X, W), 2 * 4 * 6 * 5),
        (lambda x, w, b: F.linear(x, w.T, b), (X, W, B), 2 * 4 * 6 * 5),
        (torch.bmm, (torch.ones(3, 4, 6), torch.ones(3, 6, 5)), 3 * 2 * 4 * 6 * 5),
        (torch.mv, (X, torch.ones(6)), 2 * 4 * 6),
        (torch.dot, (torch.ones(9), torch.ones(9)), 2 * 9),
        (torch.addmv, (torch.ones(4), X, torch.ones(6)), 2 * 4 * 6),
        (lambda x, w: F.conv2d(x, w, padding=1), (IMAGE, FILTER), 2 * 2 * 64 * 7 * 3 * 9),
        (F.scaled_dot_product_attention, (HEADS, HEADS, HEADS), 2 * (2 * 2 * 3 * 8 * 8 * 16)),
        (lambda x: x.sin() + x, (X,), 0),
    ],
)
def test_flops_of_single_operators_equal_the_count_by_hand(fn: Any, args: Any, flops: int) -> None:
    assert sum(counted(fn, *args).values()) == flops


def test_flops_of_a_training_step_are_those_of_its_forward_and_backward_matrix_products() -> None:
    init_state, train_step, _ = mlp_steps()
    batch = {"x": torch.ones(16, 8), "y": torch.zeros(16, 4)}
    first, second = 2 * 16 * 8 * 32, 2 * 16 * 32 * 4
    # Backward: the gradient of each weight, and of each input except the batch's.
    assert counted(train_step, init_state(0), batch) == {"float32": 2 * first + 3 * second}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_flops_do_not_depend_on_the_number_of_micro_batches(accumulate: int) -> None:
    batch = {"x": torch.ones(16, 8), "y": torch.zeros(16, 4)}
    whole = mlp_steps()
    parts = mlp_steps(accumulate=accumulate)
    state = whole.init_state(0)
    assert counted(parts.train_step, state, batch) == counted(whole.train_step, state, batch)


def test_flops_of_a_matrix_product_are_counted_under_the_dtype_of_its_inputs() -> None:
    init_state, train_step, _ = mlp_steps(precision="bf16-mixed")
    batch = {"x": torch.ones(16, 8), "y": torch.zeros(16, 4)}
    assert set(counted(train_step, init_state(0), batch)) == {"bfloat16"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex64"])
def test_floating_dtype_returns_the_first_dtype_that_is_not_an_integer(dtype: str) -> None:
    numbers = torch.ones(2, dtype=getattr(torch, dtype))
    assert floating_dtype((torch.arange(3), [None, numbers], torch.ones(2))) == dtype
    assert floating_dtype((torch.arange(3), 2.0)) == "float32"


def test_backward_pass_of_attention_counts_as_five_matrix_products() -> None:
    def grads(q: torch.Tensor) -> torch.Tensor:
        loss = ftrain.value_and_grad(lambda q: F.scaled_dot_product_attention(q, q, q).sum())
        result: torch.Tensor = loss(q)[1]
        return result

    product = 2 * 2 * 3 * 8 * 8 * 16
    assert sum(counted(grads, HEADS).values()) == 7 * product


def test_flops_of_a_scan_count_every_iteration_and_those_of_a_cond_the_costliest_branch() -> None:
    def loop(x: torch.Tensor, ws: torch.Tensor) -> torch.Tensor:
        out, _ = ftrain.scan(lambda x, w: (x @ w, None), x, ws)
        result: torch.Tensor = out
        return result

    assert counted(loop, torch.ones(4, 6), torch.ones(5, 6, 6)) == {"float32": 5 * 2 * 4 * 6 * 6}

    def branch(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = ftrain.cond(x.sum() > 0, lambda x: x @ x, lambda x: x @ x @ x, x)
        return result

    assert counted(branch, torch.ones(6, 6)) == {"float32": 2 * 2 * 6 * 6 * 6}


def test_work_of_a_loop_without_inputs_counts_every_iteration() -> None:
    def loop(x: torch.Tensor) -> Any:
        return ftrain.scan(lambda x, _: (x @ x, None), x, None, length=5)[0]

    assert counted(loop, torch.ones(6, 6)) == {"float32": 5 * 2 * 6**3}


def test_work_of_a_while_loop_counts_its_body_once() -> None:
    def loop(x: torch.Tensor) -> Any:
        return ftrain.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    works = graph_work(ftrain.compile(loop).graph(torch.ones(6, 6)))
    assert works["aten.mm"] == Work(1, {"float32": 2 * 6**3}, 2 * 4 * 6 * 6)


@pytest.mark.parametrize("order", [1, -1])
def test_work_of_branches_without_flops_is_that_of_the_branch_with_most_bytes(order: int) -> None:
    branches = [lambda x: x.sin(), lambda x: x.sin().cos()][::order]
    graph = ftrain.compile(lambda x: ftrain.cond(x.sum() > 0, *branches, x)).graph(X)
    works = graph_work(graph)
    assert (works["aten.sin"].calls, works["aten.cos"].calls) == (1, 1)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build has no oneDNN")
def test_kernel_of_a_onednn_layer_has_the_flops_of_its_product() -> None:
    layer = torch.ops.mkldnn._linear_pointwise
    (found,) = kernels_of(lambda: layer(X, W.T.contiguous(), B, "none", [], ""), CPU)[-1:]
    assert found.name == "mkldnn._linear_pointwise"
    assert found.work == Work(1, {"float32": 2 * 4 * 6 * 5}, 4 * (24 + 30 + 5 + 20))


def test_bytes_of_a_sparse_tensor_are_those_of_its_dense_shape() -> None:
    sparse = X.to_sparse()
    (found,) = kernels_of(lambda: sparse * 2.0, CPU)
    assert found.work.bytes == 2 * 4 * 24


def test_kernel_with_an_output_argument_has_the_name_of_its_operator() -> None:
    out = torch.empty(4, 5)
    (found,) = kernels_of(lambda: torch.mm(X, W, out=out), CPU)
    assert (found.name, found.work.bytes) == ("aten.mm", 4 * (24 + 30 + 20))


def test_bytes_count_each_tensor_once_and_an_expanded_axis_once() -> None:
    works = graph_work(ftrain.compile(lambda x, y: x * y).graph(X, torch.ones(6).expand(4, 6)))
    assert works["aten.mul.Tensor"].bytes == 4 * (24 + 6 + 24)
    works = graph_work(ftrain.compile(lambda x: x * x).graph(X))
    assert works["aten.mul.Tensor"].bytes == 4 * (24 + 24)


def test_views_are_not_counted_as_kernels() -> None:
    found = kernels_of(lambda: X.T.reshape(24).unsqueeze(0).expand(2, 24) + 1, CPU)
    assert [kernel.name for kernel in found] == ["aten.clone", "aten.add.Tensor"]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_kernels_of_an_eager_program_include_those_inside_loops(accumulate: int) -> None:
    init_state, train_step, _ = mlp_steps(accumulate=accumulate)
    batch = {"x": torch.ones(12, 8), "y": torch.zeros(12, 4)}
    compiled = ftrain.compile(train_step, backend="eager")
    state = init_state(0)
    compiled(state, batch)
    found = kernels_of(lambda: compiled(state, batch), CPU)
    flops = sum(sum(kernel.work.flops.values()) for kernel in found)
    assert {"float32": flops} == counted(train_step, state, batch)
    products = [k for k in found if k.work.flops]
    assert len(products) == 5 * accumulate


def test_kernels_of_a_plain_torch_step_have_the_flops_of_its_matrix_products() -> None:
    model = nn.Linear(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(16, 8)).sum().backward()
        optimizer.step()

    step()
    found = kernels_of(step, CPU)
    assert sum(sum(k.work.flops.values()) for k in found) == 2 * (2 * 16 * 8 * 4)
    assert all(kernel.seconds >= 0 for kernel in found)


def test_cost_of_a_donated_step_leaves_the_state_usable() -> None:
    init_state, train_step, _ = mlp_steps()
    batch = {"x": torch.ones(16, 8), "y": torch.zeros(16, 4)}
    step = ftrain.compile(train_step, donate=True, backend="eager")
    state = init_state(0)
    before = ftrain.tree.digest(state)
    cost = step.cost(state, batch)
    assert ftrain.tree.digest(state) == before
    assert step.n_compiles == 1
    assert sum(row.flops for row in cost.operators) == sum(cost.flops.values())
    assert sum(row.flops for row in cost.kernels) == sum(cost.flops.values())
    assert cost.floor > 0
    assert max(row.seconds or 0.0 for row in cost.kernels) > 0
    assert cost.seconds > 0
    step(state, batch)


def test_cost_prints_tables_of_kernels_operators_and_rates() -> None:
    text = str(ftrain.compile(lambda a: (a @ a).sin(), backend="eager").cost(torch.ones(8, 8)))
    kernels, operators, rates = text.split("\n\n")
    assert "aten.mm" in kernels
    assert "share" in kernels
    assert "aten.sin" in operators
    assert "float32" in rates
    assert "GFLOP/s" in rates


def test_cost_as_json_has_every_row_and_rate() -> None:
    row = ftrain.CostRow("aten.mm", 1, 0.5, 1024, 512, 2.0)
    rates = Rates({"float32": 3e12}, {2**20: 5e10})
    traced = row._replace(seconds=None)
    found = ftrain.Cost((traced,), (row,), {"float32": 1024}, 0.5, 2.0, rates).to_json()
    line = {"name": "aten.mm", "calls": 1, "flops": 1024, "bytes": 512, "floor": 2.0}
    assert json.loads(json.dumps(found)) == {
        "operators": [{**line, "seconds": None}],
        "kernels": [{**line, "seconds": 0.5}],
        "flops": {"float32": 1024},
        "seconds": 0.5,
        "floor": 2.0,
        "rates": {"flops": {"float32": 3e12}, "bandwidth": {"1048576": 5e10}},
    }


def test_kernels_of_inductor_are_named_and_timed() -> None:
    step = ftrain.compile(lambda a, b: (a @ b).sin() * 2 + 1)
    a, b = torch.ones(64, 64), torch.ones(64, 64)
    step(a, b)
    found = kernels_of(lambda: step(a, b), CPU)
    fused = [kernel for kernel in found if kernel.name.startswith("cpp_fused")]
    assert len(fused) == 1
    assert len(found) == 2
    assert fused[0].seconds > 0
    assert fused[0].work.bytes >= 4 * 64 * 64
    plain = step(a, b)  # the kernels are restored
    assert torch.equal(plain, (a @ b).sin() * 2 + 1)
    assert len(kernels_of(lambda: None, CPU)) == 0


def test_least_time_of_a_cost_is_the_longer_of_arithmetic_time_and_memory_time() -> None:
    rates = Rates({"float32": 100.0, "bfloat16": 400.0}, {10: 50.0, 1000: 5.0})
    assert rates.floor({"float32": 200}, 1) == 2.0
    assert rates.floor({"float32": 100, "bfloat16": 400}, 0) == 2.0
    assert rates.floor({}, 1000) == 200.0
    assert rates.floor({}, 10) == 0.2  # data that may be in a cache
    assert rates.floor({}, 10_000) == 2000.0
    assert rates.floor({"float16": 10}, 0) == 0.0


def test_fastest_product_reports_the_flops_of_its_matrix_size() -> None:
    product = fastest_product("float32", CPU, 32)
    product.call()
    assert product.flops == 2 * 32**3


def mlp_steps(**options: Any) -> ftrain.Steps:
    """Return the steps of an MLP of widths 8, 32, 4."""

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.mse_loss(model(batch["x"]), batch["y"])

    return ftrain.make_steps(
        lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)),
        loss_fn,
        optim.sgd(0.1),
        **options,
    )


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build has no oneDNN")
@pytest.mark.parametrize(
    ("dtype", "tries"), [("float32", True), ("float64", False), ("float16", False)]
)
def test_fastest_product_tries_onednn_only_for_dtypes_that_onednn_supports(
    dtype: str, tries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    linear = rates.F.linear
    monkeypatch.setattr(rates.F, "linear", lambda *args: calls.append(args) or linear(*args))
    monkeypatch.setattr(rates, "_seconds", lambda call, device, repeats: len(calls))
    assert rates.fastest_product(dtype, torch.device("cpu"), size=4).flops == 128
    assert bool(calls) == tries
