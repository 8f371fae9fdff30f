"""Outputs hold no traced tensors, and tensors left by an earlier trace are refused."""

from __future__ import annotations

import collections
import functools
import queue
import types

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from ftrain.core import tree
from ftrain.core.compile import compile
from ftrain.core.compile._leaks import _traced_inside
from ftrain.core.errors import TraceError
from tests.compile.cases import same_bytes


class Slots:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Node:
    def __init__(self, value):
        self.value = value


# Objects that hold a tensor and are not tree nodes.
HOLDERS = {
    "attribute": Node,
    "slot": Slots,
    "namespace": lambda x: types.SimpleNamespace(x=x),
    "set": lambda x: {x},
    "frozenset": lambda x: frozenset([x]),
    "closure": lambda x: lambda: x,
    "default": lambda x: lambda y=x: y,
    "partial": lambda x: functools.partial(max, x),
    "bound method": lambda x: Node(x).__init__,
    "method of the tensor": lambda x: x.sum,
    "generator": lambda x: (y for y in [x]),
    "iterator": lambda x: iter([x]),
    "map": lambda x: map(torch.sin, [x]),
    "key": lambda x: {(x,): 1},
    "module": lambda x: nn.ParameterList([x]),
    "distribution": lambda x: torch.distributions.Normal(x, 1.0, validate_args=False),
    "cycle": lambda x: (lambda node: setattr(node, "me", [node]) or node)(Node(x)),
    "exception": lambda x: ValueError(x),
    "property": lambda x: types.MappingProxyType({"x": x}),
    "chain": lambda x: collections.ChainMap({"x": x}),
}


def call(fn, x):
    """Return the output of the compiled function, or the error that it raises."""
    try:
        return compile(fn, backend="eager")(x)
    except TypeError as error:
        return error


@pytest.mark.parametrize("name", HOLDERS)
def test_returned_object_that_holds_a_tensor_is_rebuilt_or_raises(name):
    """The object is rebuilt with the real tensor if its class is a tree node."""
    x = torch.arange(3.0)
    for wrap in (lambda x: x, lambda x: {"a": [x]}):
        output = call(lambda x, wrap=wrap: (wrap(HOLDERS[name](x + 1)), x), x)
        if isinstance(output, TypeError):
            assert "holds a tensor" in str(output) or "in a dict key" in str(output)
            assert "Return" in str(output)
        else:
            assert _traced_inside(output) is None
            assert any(same_bytes(leaf, x + 1) for leaf in tree.leaves(output))


@given(st.data())
@settings(max_examples=25)
def test_no_traced_tensor_is_reachable_from_nested_outputs(data):
    inner = data.draw(st.sampled_from(list(HOLDERS.values())))
    containers = [
        lambda x: [x],
        lambda x: (x, 1),
        lambda x: {"k": x},
        Node,
        Slots,
        lambda x: lambda: x,
    ]
    chosen = data.draw(st.lists(st.sampled_from(containers), max_size=4))
    x = torch.arange(3.0)

    def nested(x):
        value = inner(x * 2)
        for container in chosen:
            value = container(value)
        return {"value": value, "x": x}

    output = call(nested, x)
    if isinstance(output, TypeError):
        return
    assert _traced_inside(output) is None
    assert _traced_inside(tree.structure(output)) is None


def test_returned_object_that_is_not_a_tree_and_holds_a_tensor_raises_with_path_and_class():
    with pytest.raises(
        TypeError, match=r"`<lambda>` returned a Node at \['a'\]\[1\] that holds a tensor"
    ):
        compile(lambda x: {"a": (x, Node(x))}, backend="eager")(torch.ones(2, 3))


def test_compiled_function_returns_outputs_that_are_not_tensors_unchanged():
    constant = Node(torch.arange(2.0))
    output = compile(lambda x: (x, constant, len), backend="eager")(torch.ones(3))
    assert output[1] is constant
    assert output[2] is len


def test_reading_a_tensor_stored_by_an_earlier_trace_raises():
    kept = queue.SimpleQueue()  # a list is emptied after the trace: see `leftovers_removed`

    def keep(x):
        kept.put(x * 2)
        return x

    compile(keep, backend="eager")(torch.ones(3))
    with pytest.raises(TraceError, match=r"float32\[3\].* pass it in as an argument"):
        compile(lambda x: x + kept.get(), backend="eager")(torch.ones(3))


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 1, 3)])
def test_output_that_the_function_expands_has_memory_for_each_element(shape):
    def fn(x):
        return x.sum().expand(shape), x.sum(0).expand(2, 4), x.sin()

    compiled, x = compile(fn, backend="eager"), torch.ones(3, 4)
    outputs = compiled(x)
    assert same_bytes(outputs, fn(x))
    assert [t.untyped_storage().nbytes() // 4 for t in outputs] == [t.numel() for t in outputs]
    operators = [str(node.target) for node in compiled.graph(x).graph.nodes]
    assert operators.count("aten.clone.default") == 2  # of the expanded ones alone
