"""Matrix products by the faster of a CPU's two libraries.

torch computes float32 products on a CPU with MKL, which uses AVX-512 on Intel's processors only. On an
AMD EPYC (Zen 4, two cores) oneDNN, which torch carries for its convolutions, is twice as fast:

    768 x 128 by 128 x 512, float32         MKL 197, oneDNN 382 GFLOP/s
    the gradient of its weight              MKL 177, oneDNN 349 GFLOP/s

Imported only when something is compiled, like `_inductor`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from ftrain.core import _torch

__all__ = ["FasterProducts"]

aten = torch.ops.aten

# Below this the call itself is what takes the time, and MKL's is 3 µs shorter.
_LEAST_FLOPS = 4e6


class FasterProducts(CustomGraphPass):  # type: ignore[misc]  # untyped in torch
    """Large float32 matrix products through oneDNN.

    oneDNN reads its first factor by rows and first copies one that lies by columns, as in the gradient
    of a weight, `g.T @ x`. Where both factors do, the smaller is put first: `(x.T @ g).T`.
    """

    def __call__(self, graph: fx.Graph) -> None:
        product = _torch.onednn_product()
        if product is None:
            return
        for node in list(graph.find_nodes(op="call_function", target=aten.mm.default)):
            a, b = node.args
            if _worthwhile(a, b):
                _replace(graph, node, product, a, b, None)
        for node in list(graph.find_nodes(op="call_function", target=aten.addmm.default)):
            bias, a, b = node.args
            if _worthwhile(a, b) and bias.meta["val"].ndim == 1 and not node.kwargs:
                _replace(graph, node, product, a, b, bias)

    def uuid(self) -> Any:
        """Inductor's cache key for this pass."""
        return "ftrain.FasterProducts.1"


def _replace(
    graph: fx.Graph, node: fx.Node, product: Any, a: fx.Node, b: fx.Node, bias: fx.Node | None
) -> None:
    """`a @ b + bias` as `linear(a, b.T, bias)`, or as `linear(b.T, a).T`: its weight is transposed."""

    def add(target: Any, *args: Any) -> fx.Node:
        new = graph.call_function(target, args)
        values = [x.meta["val"] if isinstance(x, fx.Node) else x for x in args]
        new.meta["val"] = target(*values)
        return new

    with graph.inserting_before(node):
        transposed = add(aten.permute.default, b, [1, 0])
        if bias is None and _lies_by_columns(a) and _size(b) < _size(a):
            new = add(aten.permute.default, add(product, transposed, a, None), [1, 0])
        else:
            new = add(product, a, transposed, bias)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _worthwhile(a: fx.Node, b: fx.Node) -> bool:
    x, y = a.meta["val"], b.meta["val"]
    sizes = (*x.shape, y.shape[1])
    return bool(
        x.device.type == "cpu"
        and x.dtype == y.dtype == torch.float32
        and all(isinstance(size, int) for size in sizes)
        and 2 * math.prod(sizes) >= _LEAST_FLOPS
    )


def _lies_by_columns(a: fx.Node) -> bool:
    down, right = a.meta["val"].stride()
    return bool(down == 1 and right != 1)


def _size(a: fx.Node) -> int:
    return int(a.meta["val"].numel())
