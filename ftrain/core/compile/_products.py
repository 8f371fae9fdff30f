"""Matrix products on a CPU: tiny ones become loops, and large ones use the faster of two libraries.

torch computes float32 products on a CPU with MKL, which uses AVX-512 on Intel's processors only. On an
AMD EPYC (Zen 5, two cores) oneDNN, which is part of torch for convolutions, is twice as fast:

    768 x 128 by 128 x 512, float32         MKL 197, oneDNN 382 GFLOP/s
    the gradient of its weight              MKL 177, oneDNN 349 GFLOP/s

Imported only when something is compiled, like `_inductor`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from ftrain.core import _torch_inductor

__all__ = ["LoopSmallProducts", "OneDNNProducts"]

aten = torch.ops.aten

# Sizes as numbers of multiplications. Between the two sizes, MKL is faster, because a call takes less
# time.
_INLINE_AT_MOST = 8192
_ONEDNN_FROM = 2_000_000


class LoopSmallProducts:
    """Pass that fuses tiny matrix products into neighbouring kernels, since a library call takes 3 µs.

    A step of three 16-wide layers on 8 rows has eight products of 2,048 multiplications each.
    """

    def __call__(self, graph: fx.Graph) -> None:
        for node, a, b, bias in _products(graph):
            if _is_real(a, b) and _count(a, b) <= _INLINE_AT_MOST:
                _inline(graph, node, a, b, bias)


class OneDNNProducts:
    """Pass that runs large float32 matrix products with oneDNN.

    oneDNN needs its first factor in row-major order, and copies a column-major one, as in the gradient
    of a weight, `g.T @ x`. If both factors would be copied, the smaller one is put first: `(x.T @ g).T`.
    """

    def __call__(self, graph: fx.Graph) -> None:
        product = _torch_inductor.onednn_product()
        if product is None:
            return
        for node, a, b, bias in _products(graph):
            if _is_real(a, b) and _dtype(a) == torch.float32 and _count(a, b) >= _ONEDNN_FROM:
                _replace(graph, node, product, a, b, bias)


def _products(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node, fx.Node, fx.Node | None]]:
    """Yield `(node, a, b, bias)` for every `a @ b` and `a @ b + bias` with a bias of one row.

    They are yielded one by one, because in `a @ b @ c` the first product may be replaced before the
    second is read.
    """
    for node in graph.find_nodes(op="call_function", target=aten.mm.default):
        left, right = node.args
        yield node, left, right, None
    for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
        bias, a, b = node.args
        if bias.meta["val"].ndim == 1 and not node.kwargs:
            yield node, a, b, bias


def _replace(
    graph: fx.Graph, node: fx.Node, product: Any, a: fx.Node, b: fx.Node, bias: fx.Node | None
) -> None:
    """Replace `a @ b + bias` by `linear(a, b.T, bias)`, or `a @ b` by `linear(b.T, a).T`."""
    with graph.inserting_before(node):
        transposed = _add(graph, aten.permute.default, b, [1, 0])
        if bias is None and _lies_by_columns(a) and _size(b) < _size(a):
            new = _add(graph, product, transposed, a, None)
            new = _add(graph, aten.permute.default, new, [1, 0])
        else:
            new = _add(graph, product, a, transposed, bias)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _inline(graph: fx.Graph, node: fx.Node, a: fx.Node, b: fx.Node, bias: fx.Node | None) -> None:
    """Replace `a @ b + bias` by `(a[:, :, None] * b[None]).sum(1) + bias`, one loop in inductor."""
    with graph.inserting_before(node):
        rows = _add(graph, aten.unsqueeze.default, a, 2)
        columns = _add(graph, aten.unsqueeze.default, b, 0)
        terms = _add(graph, aten.mul.Tensor, rows, columns)
        new = _add(graph, aten.sum.dim_IntList, terms, [1])
        if bias is not None:
            new = _add(graph, aten.add.Tensor, new, bias)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _add(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    new = graph.call_function(target, args)
    values = [x.meta["val"] if isinstance(x, fx.Node) else x for x in args]
    new.meta["val"] = target(*values)
    return new


def _is_real(a: fx.Node, b: fx.Node) -> bool:
    """Return True for two CPU factors of known sizes that are both float32 or both float64."""
    x, y = a.meta["val"], b.meta["val"]
    return bool(
        x.device.type == "cpu"
        and x.dtype == y.dtype
        and x.dtype in (torch.float32, torch.float64)
        and all(isinstance(size, int) for size in (*x.shape, *y.shape))
    )


def _count(a: fx.Node, b: fx.Node) -> int:
    """Return the number of scalar multiplications in the matrix product `a @ b`."""
    rows, inner = a.meta["val"].shape
    return int(rows * inner * b.meta["val"].shape[1])


def _dtype(a: fx.Node) -> torch.dtype:
    dtype: torch.dtype = a.meta["val"].dtype
    return dtype


def _lies_by_columns(a: fx.Node) -> bool:
    down, right = a.meta["val"].stride()
    return bool(down == 1 and right != 1)


def _size(a: fx.Node) -> int:
    return int(a.meta["val"].numel())
