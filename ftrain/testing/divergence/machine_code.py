"""Search for the first operator whose compiled code gives other bits than its eager kernel."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from ftrain.core import _torch
from ftrain.core.compile import Compiled
from ftrain.core.compile._lower import Backend, lower
from ftrain.testing.difference import Difference, first_difference
from ftrain.testing.divergence.operator_locations import Place
from ftrain.testing.divergence.operators import PLACE, computes, traced_with_places

__all__ = ["MachineDifference", "first_machine_operator"]


class MachineDifference(NamedTuple):
    """First operator of a graph whose compiled code gives other bits than its eager kernel.

    Attributes:
        name: the operator.
        place: its module and source line.
        difference: the difference of its results; `expected` is the eager kernel's value.
    """

    name: str
    place: Place
    difference: Difference


def first_machine_operator(
    compiled: Compiled[Any, Any], args: Sequence[Any]
) -> MachineDifference | None:
    """Return the first operator whose compiled result differs from the eager one; `None` if none does.

    The graph is compiled once more with the results of all operators as outputs. This can change how the
    compiler fuses operators, so that the difference no longer occurs; `None` is returned then.

    Args:
        compiled: the step.
        args: its arguments; not changed.
    """
    if compiled.backend == "eager":
        return None
    eager, code = (
        _all_results(compiled.fn, args, backend, compiled.mode)
        for backend in ("eager", compiled.backend)
    )
    for (name, place, one), (_, _, two) in zip(eager, code, strict=True):
        difference = first_difference(two, one)
        if difference is not None:
            return MachineDifference(name, place, difference)
    return None


def _all_results(
    fn: Callable[..., Any], args: Sequence[Any], backend: Backend, mode: str | None
) -> list[tuple[str, Place, torch.Tensor]]:
    """Trace and run `fn(*args)`; return the result of each operator that computes new values."""
    traced, inputs = traced_with_places(fn, args)
    nodes = [node for node in traced.graph.graph.nodes if _is_result(node)]
    found = [(str(_operator(node).target), _operator(node).meta[PLACE]) for node in nodes]
    output = traced.graph.graph.output_node()
    output.args = (nodes,)
    traced.graph.recompile()
    run = lower(traced.graph, inputs, backend, mode, n_donated=0)
    with torch.no_grad(), _torch.without_autocast():
        results = run(inputs)
    return [(*each, result) for each, result in zip(found, results, strict=True)]


def _is_result(node: fx.Node) -> bool:
    """Return True for a graph node whose tensor is a result, or one of the results, of an operator."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    source = _operator(node)
    return computes(source.target) and PLACE in source.meta


def _operator(node: fx.Node) -> fx.Node:
    """Return the graph node of the operator that computed the tensor of `node`."""
    source = node.args[0] if node.target is operator.getitem else node
    assert isinstance(source, fx.Node)
    return source
