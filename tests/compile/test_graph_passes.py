"""Passes over a traced graph: recovered views, captured tensors, tangents, dead code and outputs.

They are those of `ftrain/core/compile/_graph.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.func import jvp

import ftrain
from ftrain.core import _torch
from ftrain.core.compile import compile
from ftrain.core.compile._graph import GraphEditor
from tests.compile.cases import apart, same_bytes

X = torch.arange(1.0, 5.0)
ROWS = torch.arange(12.0).reshape(2, 2, 3)
captured = torch.full((3,), 2.0)


def eager(fn: Callable[..., Any], **options: Any) -> Any:
    return compile(fn, backend="eager", **options)


def operators(fn: Callable[..., Any], *args: Any) -> list[str]:
    graph = eager(fn).graph(*args).graph
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


def parameter(x: Tensor) -> Tensor:
    """Return a view of a vmapped tensor that a trace does not record."""
    return nn.Parameter(x, requires_grad=False)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x[0] * captured + parameter(x[1]),
        lambda x: x[0] + parameter(x[1]),
        lambda x: x[:1].sum() + parameter(x[:2]).sum(),
        lambda x: x.t().sum(0).sum() * parameter(x.t())[0],
        lambda x: parameter(x[1]) + parameter(x[0]) * torch.max(x, 0)[0],
    ],
    ids=["after a captured tensor", "second row", "more rows", "transposed", "two"],
)
def test_parameter_made_of_a_part_of_a_vmapped_argument_has_the_values_of_that_part(
    fn: Callable[[Tensor], Tensor],
) -> None:
    mapped = torch.vmap(fn)
    assert same_bytes(eager(mapped)(ROWS), mapped(ROWS))


def tangent(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: jvp(f, (x,), (torch.ones_like(x),))[1]


@pytest.mark.parametrize(
    "f", [lambda x: 3 * x, lambda x: x.sum() * 2], ids=["of a product", "of a sum"]
)
def test_second_tangent_that_is_zero_has_memory_in_the_outputs_of_a_graph(f: Any) -> None:
    twice = tangent(tangent(f))
    compiled = eager(twice)
    for found in (compiled(X), compiled.graph(X)(X)[0]):
        assert not found._is_zerotensor()
        assert found.add_(1).eq(1).all()


@pytest.mark.parametrize(
    "f", [lambda x: 3 * x, lambda x: x.sum() * 2], ids=["of a product", "of a sum"]
)
def test_graph_allocates_zero_tangents(f: Any) -> None:
    found = operators(tangent(tangent(f)), X)
    assert "aten.zeros.default" in found
    assert "aten._efficientzerotensor.default" not in found


def test_tangent_of_an_expanded_tensor_is_cloned() -> None:
    """Plain PyTorch cannot copy the tangent into memory with the strides of the expanded tensor."""

    def fn(x: Tensor) -> Any:
        with forward_ad.dual_level():
            primal = x.sum().expand(4)
            dual = forward_ad.make_dual(primal, x * 2)
            return forward_ad.unpack_dual(dual * dual).tangent

    with pytest.raises(RuntimeError, match="more than one element"):
        fn(X)
    assert torch.equal(eager(fn)(X), 2 * X.sum() * (X * 2))
    found = operators(fn, X)
    assert "aten.copy_.default" not in found
    assert "aten.clone.default" in found


def test_copies_between_dtypes_and_into_tensors_that_are_read_again_are_kept() -> None:
    def fn(x: Tensor) -> Any:
        y = torch.zeros(4, dtype=torch.float64).copy_(x, True)
        z = torch.zeros(4)
        view = z[1:]
        z.copy_(x)
        wide = torch.zeros(2, 4).copy_(x)
        return y, view, z, wide

    assert same_bytes(eager(fn)(X), fn(X))


def test_captured_tensors_are_inputs_and_constants_are_not() -> None:
    weight = torch.ones(4)

    def fn(x: Tensor) -> Tensor:
        scaled = x * torch.tensor([1.0, 2.0, 3.0, 4.0])
        branch = ftrain.cond(x.sum() > 0, lambda: scaled, lambda: x)
        return branch + weight + weight * weight

    compiled = eager(fn)
    traced, inputs = compiled.traced(X)
    assert [x is y for x, y in zip(inputs, (X, weight), strict=True)] == [True, True]
    placeholders = [node.op == "placeholder" for node in traced.graph.graph.nodes]
    assert placeholders == sorted(placeholders, reverse=True)
    assert sum(placeholders) == 2
    assert same_bytes(compiled(X), fn(X))


def test_graphs_of_loop_bodies_take_captured_tensors_and_constants_as_inputs() -> None:
    weight = torch.ones(4)

    def fn(x: Tensor) -> Tensor:
        return ftrain.scan(lambda c, _: (c * weight + torch.tensor(1.0), None), x, length=2)[0]

    graph = eager(fn).graph(X)
    bodies = [module for module in graph.modules() if module is not graph]
    assert bodies
    found = [node for body in bodies for node in body.graph.find_nodes(op="get_attr")]  # type: ignore[operator, union-attr]
    assert found == []


def test_captured_tensor_of_a_function_without_arguments_is_read_at_every_call() -> None:
    weight = torch.ones(2)
    compiled = eager(lambda: weight * 2)
    assert compiled().tolist() == [2.0, 2.0]
    weight.fill_(3.0)
    assert compiled().tolist() == [6.0, 6.0]


def test_operators_without_effect_are_not_in_the_graph() -> None:
    def fn(x: Tensor) -> Tensor:
        x.sin().cos()
        y = torch.zeros(4)
        y.add_(x)  # its result is read, although not as a result of this operator
        return y * 2

    found = operators(fn, X)
    assert "aten.sin.default" not in found
    assert "aten.cos.default" not in found
    assert "aten.add_.Tensor" in found


def test_recomputation_in_a_graph_depends_on_the_operator_before_it() -> None:
    region = ftrain.remat(lambda w: w.sin().cos())
    graph = eager(ftrain.value_and_grad(lambda w: region(w * 2).square().sum())).graph(X).graph
    starts = [n for n in graph.nodes if "start_recomputation" in str(n.target)]
    assert starts
    for start in starts:
        (before,) = start.args[1]
        order = list(graph.nodes)
        assert order.index(before) < order.index(start)


def test_outputs_of_a_graph_share_no_memory_with_its_inputs_or_each_other() -> None:
    def fn(x: Tensor) -> Any:
        y = x * 2
        return x, x[1:], captured, y, y, y.view(2, 2), y[:1].expand(3), x.sum()

    compiled = eager(fn)
    traced, inputs = compiled.traced(X)
    outputs = tuple(traced.graph(*inputs))
    assert same_bytes(outputs, fn(X))
    assert apart(outputs, inputs)


def test_outputs_with_memory_of_their_own_are_not_cloned() -> None:
    def fn(x: Tensor) -> Any:
        rows = x.sum().as_strided((1,), (0,))
        return x * 2, (x * 3).t(), x.sum(0, keepdim=True).expand(1, 4), x.sum().expand(()), rows

    found = operators(fn, X.reshape(2, 2).repeat(1, 2))
    assert "aten.clone.default" not in found


def test_expanded_output_has_memory_for_each_of_its_elements() -> None:
    for size in (2, 3):
        found = eager(lambda x, size=size: x.sum().expand(size))(X)
        assert found.add_(1).tolist() == [11.0] * size
        assert found.stride() == (1,)


def test_captured_tensors_are_not_attributes_of_the_graph_after_they_have_become_inputs() -> None:
    root, graph, mode = nn.Module(), fx.Graph(), _torch.fake_mode()
    root.weight = torch.ones(2)
    node = graph.get_attr("weight")
    product = graph.call_function(torch.ops.aten.mul.Tensor, (node, node))
    graph.output([product])
    node.meta["val"] = product.meta["val"] = mode.from_tensor(root.weight)
    editor = GraphEditor(fx.GraphModule(root, graph), mode, [])
    assert [each is root.weight for each in editor.lift_captured()] == [True]
    assert [n.op for n in editor.graph.nodes] == ["placeholder", "call_function", "output"]
