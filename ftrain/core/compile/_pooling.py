"""Max pooling on a CPU as pointwise operators, which inductor fuses and vectorizes.

Inductor computes the gradient of max pooling by a scatter, without vector instructions, and computes
the position of each maximum again in the same loop. In a step of 16 LeNet-5 on 8 images, in one graph,
this took half of the time. If windows do not overlap, each element of the input belongs to one window,
and its gradient is that of the window's maximum or zero.

Read next: `_lower.py`, which calls this.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

__all__ = ["split_pools"]

aten = torch.ops.aten
POOL = aten.max_pool2d_with_indices.default
BACKWARD = aten.max_pool2d_with_indices_backward.default

# Operators that merge or copy leading axes, as `torch.vmap` records before it pools.
_VIEWS = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.clone.default,
    aten.detach.default,
)


def split_pools(graph: fx.Graph) -> bool:
    """Rewrite the max pooling of vmapped models, and its gradient, as pointwise operators in a graph.

    Return True if there was one. Windows must not overlap, and leading axes must have been merged, as
    `torch.vmap` does. For a single model, with few channels, inductor's own loops are as fast.

    Values and gradients are those of `torch.nn.functional.max_pool2d`: of equal elements the first is
    the maximum, and of NaNs the last.
    """
    pools = map(_read, graph.find_nodes(op="call_function", target=POOL))
    found = [pool for pool in pools if pool is not None]
    for pool in found:
        _rewrite(graph, pool)
    return bool(found)


class _Pool(NamedTuple):
    node: fx.Node
    source: fx.Node  # the input, with its leading axes before they were merged
    window: tuple[int, ...]
    gradients: list[fx.Node]


def _read(node: fx.Node) -> _Pool | None:
    """Return the parts of a max pooling that `split_pools` can rewrite; `None` for any other pooling."""
    x, kernel, stride, padding, dilation, ceil = _filled(node.args, ([], 0, 1, False))
    value = x.meta["val"]
    height, width = value.shape[-2:]
    window = _pair(kernel)
    parts = list(node.users)
    indices = [part for part in parts if part.args[1:] == (1,)]
    gradients = [user for part in indices for user in _users(part)]
    if (
        node.kwargs
        or value.device.type != "cpu"
        or not value.is_floating_point()
        or not all(isinstance(size, int) for size in value.shape)
        or any(part.target is not operator.getitem for part in parts)
        or not gradients
        or any(
            each.target is not BACKWARD or _source(each.args[1]) is not _source(x)
            for each in gradients
        )
        or (_pair(stride) or window) != window
        or _pair(padding) != (0, 0)
        or _pair(dilation) != (1, 1)
        or ceil
        or height % window[0]
        or width % window[1]
        or math.prod(window) > _MOST
    ):
        return None
    source = _source(x)
    return _Pool(node, source, window, gradients) if source.meta["val"].ndim > 4 else None


_MOST = 16  # elements of a window; each is an operand in the generated loop


def _rewrite(graph: fx.Graph, pool: _Pool) -> None:
    rows, columns = pool.window
    with graph.inserting_before(pool.node):
        best, place = None, _add(graph, aten.full.default, [], 0.0, dtype=torch.float32)
        for i in range(rows):
            for j in range(columns):
                part = _add(graph, aten.slice.Tensor, pool.source, -2, i, None, rows)
                part = _add(graph, aten.slice.Tensor, part, -1, j, None, columns)
                if best is None:
                    best = part
                    continue
                greater = _add(graph, aten.gt.Tensor, part, best)
                is_nan = _add(graph, aten.ne.Tensor, part, part)
                takes = _add(graph, aten.bitwise_or.Tensor, greater, is_nan)
                best = _add(graph, aten.where.self, takes, part, best)
                here = _add(
                    graph, aten.full.default, [], float(columns * i + j), dtype=torch.float32
                )
                place = _add(graph, aten.where.self, takes, here, place)
        assert best is not None
        for part in list(pool.node.users):
            if part.args[1] == 0:
                part.replace_all_uses_with(_shaped(graph, best, part.meta["val"].shape))
    for each in pool.gradients:
        with graph.inserting_before(each):
            _gradient(graph, pool, each, place)
    for part in list(pool.node.users):
        _erase_unused(graph, part)
    graph.erase_node(pool.node)


def _gradient(graph: fx.Graph, pool: _Pool, node: fx.Node, place: fx.Node) -> None:
    """Rewrite a gradient of max pooling: each window's gradient goes to the maximum of the window."""
    rows, columns = pool.window
    source = pool.source.meta["val"]
    *leading, height, width = source.shape
    pooled = [*leading, height // rows, width // columns]
    grad = _source(node.args[0])
    grad = _shaped(graph, grad, pooled)
    numbers = [
        _add(graph, aten.arange.default, n, dtype=torch.float32, device=source.device)
        for n in (rows, columns)
    ]
    down = _add(graph, aten.mul.Tensor, numbers[0], float(columns))
    down = _add(graph, aten.view.default, down, [rows, 1, 1])
    here = _add(graph, aten.add.Tensor, down, numbers[1])

    def spread(x: fx.Node) -> fx.Node:
        return _add(graph, aten.unsqueeze.default, _add(graph, aten.unsqueeze.default, x, -1), -3)

    wins = _add(graph, aten.eq.Tensor, spread(place), here)
    zero = _add(graph, aten.full.default, [], 0.0, dtype=source.dtype)
    new = _add(graph, aten.where.self, wins, spread(grad), zero)
    new = _add(graph, aten.reshape.default, new, [*source.shape])
    for user in list(node.users):
        if _is_view(user) and user.meta["val"].shape == source.shape:
            user.replace_all_uses_with(new)
            graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(_shaped(graph, new, node.meta["val"].shape))


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node together with the nodes that read it, which must be unused views and copies."""
    for user in list(node.users):
        _erase_unused(graph, user)
    graph.erase_node(node)


def _users(x: fx.Node) -> list[fx.Node]:
    """Return the nodes that use a tensor, directly or through its views and copies."""
    found = []
    for user in x.users:
        found += _users(user) if _is_view(user) else [user]
    return found


def _source(x: Any) -> fx.Node:
    """Return the original tensor of which `x` is a view or copy with merged or split leading axes."""
    node: fx.Node = x
    while _is_view(node):
        below: Any = node.args[0]
        if below.meta["val"].shape[-2:] != x.meta["val"].shape[-2:]:
            break
        node = below
    return node


def _is_view(x: fx.Node) -> bool:
    """Return True for a node that has the elements of its first argument, in the same order."""
    if x.target is aten.permute.default:
        axes: Any = x.args[1]
        return list(axes) == [*range(len(axes))]
    return x.target in _VIEWS


def _shaped(graph: fx.Graph, x: fx.Node, shape: Sequence[int]) -> fx.Node:
    return _add(graph, aten.reshape.default, x, [*shape])


def _add(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    new = graph.call_function(target, args, kwargs)
    values = [x.meta["val"] if isinstance(x, fx.Node) else x for x in args]
    new.meta["val"] = target(*values, **kwargs)
    return new


def _filled(args: Sequence[Any], defaults: Sequence[Any]) -> list[Any]:
    """Return the six arguments of a pooling, with defaults for those that are left out."""
    return [*args, *defaults[len(args) - 2 :]]


def _pair(value: Any) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * 2 if len(values) == 1 else values
