"""Traced dtypes survive inductor's decompositions; the device is fake, since only CUDA mixes these."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ftrain.core._torch_inductor import decompositions
from ftrain.core.compile._dtypes import keep_traced_dtypes

aten = torch.ops.aten


def graph_of(operator: Any, dtypes: list[torch.dtype], *rest: Any) -> fx.GraphModule:
    """Return a graph of one operator of `(3, 3)` tensors on CUDA, with the values of a trace."""
    graph = fx.Graph()
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = []
        for i, dtype in enumerate(dtypes):
            inputs.append(graph.placeholder(f"x{i}"))
            inputs[-1].meta["val"] = torch.empty(3, 3, dtype=dtype, device="cuda")
        values = [each.meta["val"] for each in inputs]
        node = graph.call_function(operator, (*inputs, *rest))
        node.meta["val"] = operator(*values, *rest)
    graph.output([node])
    return fx.GraphModule({}, graph)


def dtypes_after_decomposition(graph: fx.GraphModule) -> list[torch.dtype]:
    """Run a graph as inductor does: each operator by its decomposition, if it has one."""
    table = decompositions()

    class Decomposed(fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            return table.get(target, target)(*args, **kwargs)

    inputs = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]
    with inputs[0].fake_mode:
        return [value.dtype for value in Decomposed(graph).run(*inputs)]


@pytest.mark.parametrize("traced", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "operator", [aten._softmax_backward_data.default, aten._log_softmax_backward_data.default]
)
def test_softmax_derivative_compiled_by_inductor_keeps_the_traced_dtype(
    operator: Any, traced: torch.dtype
) -> None:
    graph = graph_of(operator, [torch.float32, torch.float32], -1, traced)
    assert graph.graph.output_node().args[0][0].meta["val"].dtype == traced
    keep_traced_dtypes(graph)
    assert dtypes_after_decomposition(graph) == [traced]


def test_operators_whose_decomposition_keeps_the_traced_dtype_get_no_cast() -> None:
    graph = graph_of(aten._softmax_backward_data.default, [torch.float32] * 2, -1, torch.float32)
    before = len(graph.graph.nodes)
    keep_traced_dtypes(graph)
    assert len(graph.graph.nodes) == before


def test_softmax_derivative_fails_in_inductor_without_the_cast_to_the_traced_dtype() -> None:
    """Else this file tests nothing: without the pass the dtype of float16 is another one."""
    graph = graph_of(aten._softmax_backward_data.default, [torch.float32] * 2, -1, torch.float16)
    assert dtypes_after_decomposition(graph) == [torch.float32]
