"""Sums over repeated indices on the CPU, computed in the order of the indices.

By `index_put` and `put` with `accumulate=True`, which also compute the gradients of `w[indices]` and
`torch.take`, torch adds values to the same element from all threads, in an order that varies from call
to call, and so do the bits of a float32 sum. For fewer than 32,768 elements torch uses one thread, so
that the sums here are computed by such calls, one after the other. They have the same bits with any
number of threads.

Used by eager gradients, by eager calls of models and by graphs that run without a compiler. In compiled
programs, `_torch_inductor_sums.py` changes the generated loops.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import BackwardCFunction

from ftrain.core._torch_dispatch import DispatchMode

__all__ = ["SUMS", "adds_by_index", "in_order", "order_sums"]

aten = torch.ops.aten

_SERIAL = 32767  # elements; torch divides calls on more of them among its threads (1.8 and later)

#: The torch functions that may add by index.
SUMS: frozenset[Any] = frozenset(
    {
        *(torch.index_put, torch.index_put_, Tensor.index_put, Tensor.index_put_),
        *(torch.put, Tensor.put, Tensor.put_),
    }
)
# Nodes of autograd graphs whose backward pass adds by index, and the class of C++ functions, which may.
_NODES = frozenset(
    {
        *("IndexBackward0", "TakeBackward0", "UnsafeIndexBackward0", "UnsafeMaskedIndexBackward0"),
        "CppFunction",
    }
)
_OTHERS: set[type] = set()  # classes of nodes that do not, found so far


class _SumsInOrder(DispatchMode):
    """Mode in which sums over repeated indices are computed in order; costs 3 µs for each operator."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        ordered = _ORDERED.get(func)
        if ordered is None or types:  # tensor subclasses run their own operators
            return func(*args, **(kwargs or {}))
        return ordered(*args, **(kwargs or {}))


def in_order(adds: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context that computes sums in order if `adds` and torch uses several threads."""
    return _SumsInOrder() if adds and torch.get_num_threads() > 1 else contextlib.nullcontext()


def adds_by_index(tensors: Iterable[Tensor]) -> bool:
    """Return True if the backward pass of CPU tensors may add by index; takes 0.3 µs per graph node.

    It may if one of its nodes does so, or runs the backward method of a custom function. False with one
    thread, which adds in order.
    """
    if torch.get_num_threads() == 1:
        return False
    nodes = [tensor.grad_fn for tensor in tensors if tensor.is_cpu and tensor.grad_fn is not None]
    seen: set[Any] = set(nodes)
    while nodes:
        node: Any = nodes.pop()
        kind = type(node)
        if kind not in _OTHERS:
            if kind.__name__ in _NODES or issubclass(kind, BackwardCFunction):
                return True
            _OTHERS.add(kind)
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                nodes.append(after)
    return False


def order_sums(graph: fx.Graph) -> None:
    """Compute the sums of a graph that runs without a compiler in order."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _ORDERED:
            node.target = _ORDERED[node.target]


def _index_put(
    tensor: Tensor,
    indices: Sequence[Tensor | None],
    values: Tensor,
    accumulate: bool = False,
    unsafe: bool = False,
) -> Tensor:
    def put(at: Sequence[Tensor | None], part: Tensor) -> Any:
        return aten._index_put_impl_(tensor, at, part, accumulate, unsafe)

    if not (accumulate and _is_parallel(tensor)):
        put(indices, values)
        return tensor
    each = [part for index in indices for part in _as_integers(index)]
    given = torch.broadcast_tensors(*filter(_is_tensor, each))  # type: ignore[no-untyped-call]
    places = [i for i, index in enumerate(each) if index is not None]
    # The indexed dimensions become those of the indices: in place if adjacent, otherwise in front.
    is_adjacent = places[-1] - places[0] + 1 == len(places)
    start, shape = places[0] if is_adjacent else 0, given[0].shape
    rest = [n for i, n in enumerate(tensor.shape) if i >= len(each) or each[i] is None]
    values = values.expand([*rest[:start], *shape, *rest[start:]])
    n, row = math.prod(shape), math.prod(rest)
    if n * row <= _SERIAL or not shape:
        put(indices, values)
        return tensor
    values = values.flatten(start, start + len(shape) - 1)
    flat = iter([index.flatten() for index in given])
    each = [None if index is None else next(flat) for index in each]
    step = max(1, _SERIAL // row)  # one row has no repeated index
    for k in range(0, n, step):
        put(
            [None if index is None else index[k : k + step] for index in each],
            values.narrow(start, k, min(step, n - k)),
        )
    return tensor


def _is_tensor(index: Tensor | None) -> bool:
    return index is not None


def _as_integers(index: Tensor | None) -> Sequence[Tensor | None]:
    """Return the integer indices of a mask, one for each of its dimensions; others as they are."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return index.nonzero().unbind(1)


def _put(tensor: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    if not (accumulate and _is_parallel(tensor) and index.numel() > _SERIAL):
        return aten.put_(tensor, index, source, accumulate)  # type: ignore[no-any-return]
    index, source = index.flatten(), source.flatten()
    for k in range(0, len(index), _SERIAL):
        aten.put_(tensor, index[k : k + _SERIAL], source[k : k + _SERIAL], accumulate)
    return tensor


def _is_parallel(tensor: Tensor) -> bool:
    """Return True if torch may add to a tensor from several threads (other dtypes use one)."""
    return tensor.is_cpu and tensor.dtype is torch.float32 and torch.get_num_threads() > 1


def _functional(write: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return write(tensor.clone(memory_format=torch.preserve_format), *args, **kwargs)

    return run


_ORDERED: dict[Any, Callable[..., Tensor]] = {
    aten._index_put_impl_.default: _index_put,
    aten.index_put_.default: _index_put,
    aten.index_put.default: _functional(_index_put),
    aten._unsafe_index_put.default: _functional(_index_put),
    aten.put_.default: _put,
    aten.put.default: _functional(_put),
}
