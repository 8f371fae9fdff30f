"""Reductions of sharded tensors that need one number, or one row, from each rank.

They differ from those of the whole tensor by rounding only: each rank reduces its rows, and the results
are gathered and reduced in rank order, which gives the same bits on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ftrain.core._torch_collectives import all_gather
from ftrain.core._torch_wrapper import plain
from ftrain.distributed._ordered import OrderedGroup
from ftrain.distributed._sharded_tensor import ROUNDED_BY_RANK, RULES, ShardedTensor, rows_of

__all__: list[str] = []

aten = torch.ops.aten


def _real(x: ShardedTensor) -> torch.Tensor:
    """Return the rows of a sharded tensor on this rank, without padding."""
    return x.local.narrow(0, 0, rows_of(x.shape[0], x.group)[1])


def _over_ranks(x: ShardedTensor, value: torch.Tensor) -> torch.Tensor:
    """Return the values of all ranks, stacked along a new first axis."""
    return all_gather(value, x.group)


def _axes(x: torch.Tensor, dim: Any) -> list[int]:
    """Return the axes of a reduction as numbers from 0; all axes if `dim` is None or empty."""
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return list(range(x.ndim))
    return sorted({d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)})


def _argument(
    args: Sequence[Any], kwargs: dict[str, Any], place: int, name: str, default: Any
) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _within_rows(x: ShardedTensor, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Reduce a sharded tensor over axes other than the rows: each rank reduces its own rows."""
    return ShardedTensor(func(x.local, *args[1:], **kwargs), x.shape[0], x.group)


def _sum(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    axes = _axes(x, _argument(args, kwargs, 1, "dim", None))
    if 0 not in axes:
        return _within_rows(x, func, args, kwargs)
    part = func(_real(x), *args[1:], **kwargs)
    return _over_ranks(x, part).sum(0)


def _mean(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    axes = _axes(x, _argument(args, kwargs, 1, "dim", None))
    if 0 not in axes:
        return _within_rows(x, func, args, kwargs)
    dtype = kwargs.get("dtype")
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    keepdim = _argument(args, kwargs, 2, "keepdim", False)
    # As torch does: a mean of half precision is a sum in float32, rounded once.
    wide = torch.promote_types(dtype or x.dtype, torch.float32)
    total = _real(x).sum(axes, keepdim, dtype=wide)
    return (_over_ranks(x, total).sum(0) / count).to(dtype or x.dtype)


def _norm(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x = args[0]
    order = _argument(args, kwargs, 1, "ord", 2)
    axes = _axes(x, _argument(args, kwargs, 2, "dim", None))
    if 0 not in axes:
        return _within_rows(x, func, args, kwargs)
    if order != 2:
        return NotImplemented
    part = func(_real(x), *args[1:], **kwargs)
    return torch.linalg.vector_norm(_over_ranks(x, part), dim=0)


def _norms(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return the norm of each of several tensors; one collective combines those of sharded tensors.

    With logical shards, whose bits do not depend on the ranks, gather one tensor after the other.
    """
    places = [i for i, x in enumerate(args[0]) if isinstance(x, ShardedTensor)]
    group = args[0][places[0]].group
    if any(args[0][i].group != group for i in places):
        return NotImplemented
    if isinstance(group, OrderedGroup):
        return [func([plain(x)], *args[1:], **kwargs)[0] for x in args[0]]
    if _argument(args, kwargs, 1, "ord", 2) != 2:
        return NotImplemented
    norms = list(func([_real_rows(x) for x in args[0]], *args[1:], **kwargs))
    if len({norms[i].dtype for i in places}) > 1:
        return NotImplemented
    parts = all_gather(torch.stack([norms[i] for i in places]), group)
    for i, norm in zip(places, torch.linalg.vector_norm(parts, dim=0).unbind(), strict=True):
        norms[i] = norm
    return norms


def _real_rows(x: torch.Tensor) -> torch.Tensor:
    return _real(x) if isinstance(x, ShardedTensor) else x


def _every(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    part = func(_real(args[0]))
    return func(_over_ranks(args[0], part))


def _plain(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operator such as `new_zeros`, whose result is a plain tensor, on a sharded tensor."""
    if not isinstance(args[0], ShardedTensor):
        return NotImplemented
    return func(args[0].local, *args[1:], **kwargs)


RULES.update(dict.fromkeys((aten.sum.default, aten.sum.dim_IntList), _sum))
RULES.update(dict.fromkeys((aten.mean.default, aten.mean.dim), _mean))
RULES[aten.linalg_vector_norm.default] = _norm
ROUNDED_BY_RANK.update(RULES)
RULES[aten._foreach_norm.Scalar] = _norms
RULES.update(dict.fromkeys((aten.all.default, aten.any.default), _every))
RULES.update(
    dict.fromkeys(
        (
            aten.new_empty.default,
            aten.new_empty_strided.default,
            aten.new_full.default,
            aten.new_ones.default,
            aten.new_zeros.default,
        ),
        _plain,
    )
)
