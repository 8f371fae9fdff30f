"""Least time of a training step: that of its matrix products and of the memory that AdamW moves.

Each product of the traced step is timed alone, by the fastest library, with its factors in the cache.
AdamW reads parameter, gradient and two moments, and writes parameter and moments: 28 bytes for each
float32 parameter, at the measured bandwidth. All else (attention, norms, activations, loss, calls)
counts as nothing, so no step with these products can be as fast.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

import ftrain
from benchmarks.contenders import Task, steps
from ftrain import tree
from ftrain.core.cost.rates import measure_rates

__all__ = ["Floor", "step_floor"]

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
BYTES = 28  # that AdamW reads and writes for each float32 parameter
BURSTS, SECONDS = 7, 0.004  # turns of each product, and their length

Kind = tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]


class Floor(NamedTuple):
    """Least seconds of a step.

    Attributes:
        products: all matrix products, each timed alone.
        memory: what AdamW reads and writes.
        calls: the number of products.
    """

    products: float
    memory: float
    calls: int

    @property
    def seconds(self) -> float:
        """The sum of both."""
        return self.products + self.memory

    def __str__(self) -> str:
        return (
            f"floor {self.seconds * 1e3:.3g} ms: {self.calls} products {self.products * 1e3:.3g} ms, "
            f"memory of AdamW {self.memory * 1e3:.3g} ms"
        )


def step_floor(task: Task, **options: Any) -> Floor:
    """Return the least time of a step of `make_steps(..., **options)` without micro-batches."""
    made = steps(task, **options)
    state = made.init_state(0)
    graph = ftrain.compile(made.train_step, backend="eager").graph(state, task.batches[0])
    kinds = Counter(_kind(node) for node in _products(graph))
    with torch.no_grad():
        products = sum(count * _fastest(kind) for kind, count in kinds.items())
    size = BYTES * sum(x.numel() for x in tree.leaves(state.params))
    memory = measure_rates([], torch.device("cpu")).floor({}, size)
    return Floor(products, memory, kinds.total())


def _products(graph: fx.GraphModule) -> Iterator[fx.Node]:
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            yield from (node for node in module.graph.nodes if node.target in PRODUCTS)


def _kind(node: fx.Node) -> Kind:
    """Return shape, strides and dtype of both factors of a product."""
    factors = [node.args[-2], node.args[-1]]
    values = [x.meta["val"] for x in factors if isinstance(x, fx.Node)]
    return tuple((tuple(x.shape), tuple(x.stride()), x.dtype) for x in values)


def _fastest(kind: Kind) -> float:
    a, b = (
        torch.empty_strided(shape, strides, dtype=dtype).fill_(0.5)
        for shape, strides, dtype in kind
    )
    calls: list[Callable[[], Any]] = [lambda: torch.matmul(a, b)]
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if linear is not None and a.ndim == 2:
        weight = b.t()
        calls.append(lambda: linear(a, weight, None, "none", [], ""))
    return min(_seconds(call) for call in calls)


def _seconds(call: Callable[[], Any]) -> float:
    """Return the median time of a call over several bursts."""
    call()
    start = time.perf_counter()
    call()
    count = max(1, int(SECONDS / (time.perf_counter() - start)))
    found = []
    for _ in range(BURSTS):
        start = time.perf_counter()
        for _ in range(count):
            call()
        found.append((time.perf_counter() - start) / count)
    return statistics.median(found)
