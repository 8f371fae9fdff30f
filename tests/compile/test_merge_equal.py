"""Test which expressions of a graph are merged before inductor compiles it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ftrain import testing
from ftrain.core.compile._inductor import MergeEqual

aten = torch.ops.aten
X = torch.arange(24.0).reshape(2, 3, 4)


def operators_left(fn: Callable[..., Any]) -> int:
    """Return the number of operators after the merge, which must not change the result."""
    graph = make_fx(fn)(X)
    MergeEqual()(graph.graph)
    graph.graph.lint()
    graph.recompile()
    testing.assert_same_bits(graph(X), fn(X))
    return sum(node.op == "call_function" for node in graph.graph.nodes)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (x.exp(), x.exp()),
        lambda x: (aten.permute.default(x, [1, 0, 2]), aten.permute.default(x, [1, 0, 2])),
        lambda x: (
            aten.mean.dim(x, [0], dtype=torch.float64), aten.mean.dim(x, [0], dtype=torch.float64),
        ),
        lambda x: (aten.cat.default([x, x], 1), aten.cat.default([x, x], 1)),
    ],
    ids=["tensors", "lists", "keywords", "lists of tensors"],
)  # fmt: skip
def test_equal_expressions_are_merged(fn: Callable[..., Any]) -> None:
    assert operators_left(fn) == 1


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (aten.permute.default(x, [1, 0, 2]), aten.permute.default(x, [0, 2, 1])),
        lambda x: (aten.sum.dim_IntList(x, [0]), aten.sum.dim_IntList(x, [0], True)),
        lambda x: (aten.mean.dim(x, [0]), aten.mean.dim(x, [0], dtype=torch.float64)),
        lambda x: (aten.mul.Tensor(x, 0.0), aten.mul.Tensor(x, -0.0)),
        lambda x: (aten.full.default([2], 1), aten.full.default([2], True)),
        lambda x: (aten.bernoulli.p(x, 1.0), aten.bernoulli.p(x, 1.0)),  # random, though of ones
    ],
    ids=["lists", "arguments", "keywords", "signs of zero", "types", "draws"],
)
def test_different_expressions_are_not_merged(fn: Callable[..., Any]) -> None:
    assert operators_left(fn) == 2
