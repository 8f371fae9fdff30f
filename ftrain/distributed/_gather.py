"""Differentiable gathering of parameters from shards.

The forward pass gathers the rows of all ranks; the backward pass sums the gradients of all ranks, and
returns this rank's rows of the sum. Tensors of one dtype travel together, in one collective. The results
of the gathering are the whole parameters: none is copied. Gradients are copied into one tensor, because
gloo would sum each of several tensors in a collective of its own.

Read next: `_units.py`, which decides when parameters are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ftrain.core._torch import unwatched
from ftrain.core._torch_collectives import (
    Group,
    all_gather,
    all_reduce,
    all_to_all,
    reduce_scatter,
    start_all_gather,
    waited,
)
from ftrain.distributed._ordered import OrderedGroup, halving_sum
from ftrain.distributed._sharded_tensor import rows_of

__all__ = ["Gathering", "Share", "gather_parameters", "start_gather", "sum_gradients"]

#: Whole parameters that are being gathered, padding included; `None` for a replicated parameter.
Gathering = list[torch.Tensor | None]


class Share:
    """Factor by which this rank multiplies its gradients before they are summed over ranks.

    Each rank divides its loss by its own weight before the backward pass, as one process does, so that
    products in half precision round and overflow as in one process. The factor corrects the division.

    Args:
        replicas: the ranks that hold the same rows, if parameters are replicated over another axis.

    Attributes:
        value: 0-d, the factor; `None` outside of the step's backward pass.
        total: 0-d, the weight of all ranks.
    """

    value: torch.Tensor | None = None
    total: torch.Tensor | None = None

    def __init__(self, replicas: Group | None = None) -> None:
        self.replicas = replicas
        self._summed: set[str] = set()

    def begin(self, value: torch.Tensor, total: torch.Tensor) -> None:
        """Set this rank's factor, and the total weight of all ranks, before a backward pass."""
        self.value, self.total = value, total
        self._summed.clear()

    def over_replicas(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the sum of a gradient over the ranks that hold the same rows."""
        return gradient if self.replicas is None else all_reduce(gradient, self.replicas)

    def in_order(self, gradients: torch.Tensor) -> torch.Tensor:
        """Sum the gradients of all ranks in an order that gives equal bits for any number of ranks.

        Args:
            gradients: `[ranks, ...]`, of the ranks of one copy of the parameters.
        """
        if self.replicas is not None:
            gradients = all_gather(gradients, self.replicas).flatten(0, 1)
        return halving_sum(gradients)

    def check_once(self, names: Sequence[str]) -> None:
        """Raise if the gradient of a parameter was summed over ranks already in this backward pass.

        A sum of two sums over ranks has other bits than a sum over ranks of two sums.
        """
        twice = [name for name in names if name in self._summed]
        if twice:
            raise NotImplementedError(
                "logical_shards: expected each unit (sharded module) to run once in a forward pass, and "
                f"no other code to read its parameters, got a second use of {twice[0]!r}, whose "
                "gradient would depend on the number of ranks. Select other modules: "
                "fully_sharded(..., units=...)."
            )
        self._summed.update(names)


def start_gather(
    tensors: Sequence[torch.Tensor], rows: Sequence[int | None], group: Group
) -> Gathering:
    """Start to gather whole parameters from the rows of all ranks, without waiting for the result.

    Args:
        tensors: this rank's rows of each parameter, or a replicated parameter.
        rows: the number of rows of each whole parameter; `None` for a replicated parameter.
        group: the ranks.
    """
    found: Gathering = [None] * len(tensors)
    for places in _buckets(rows, [x.dtype for x in tensors]).values():
        given = [tensors[i].contiguous() for i in places]
        for i, whole in zip(places, start_all_gather(given, group), strict=True):
            found[i] = whole
    return found


def gather_parameters(
    names: Sequence[str],
    tensors: Sequence[torch.Tensor],
    rows: Sequence[int | None],
    group: Group,
    share: Share,
    started: Gathering | None = None,
) -> list[torch.Tensor]:
    """Gather whole parameters from the rows of all ranks; the backward pass sums gradients over ranks.

    Args:
        names: the names of the parameters.
        tensors: this rank's rows of each parameter, or a replicated parameter.
        rows: the number of rows of each whole parameter; `None` for a replicated parameter.
        group: the ranks.
        share: the factor of this rank's gradients.
        started: the result of `start_gather`, if it was called before.
    """
    if not tensors or (group.size == 1 and share.replicas is None):
        return list(tensors)
    given = (tuple(names), tuple(rows), group, share, started)
    return list(_Gather.apply(*given, *tensors))  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        names: Sequence[str],
        rows: Sequence[int | None],
        group: Group,
        share: Share,
        started: Gathering | None,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        ctx.names, ctx.rows, ctx.group, ctx.share = names, rows, group, share
        with unwatched():
            ctx.dtypes = [x.dtype for x in tensors]
            found = start_gather(tensors, rows, group) if started is None else started
            return tuple(
                x.view_as(x) if n is None or whole is None else _rows(waited(whole), n)
                for x, n, whole in zip(tensors, rows, found, strict=True)
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        if isinstance(ctx.group, OrderedGroup):
            ctx.share.check_once(ctx.names)
        with unwatched():
            found = sum_gradients(grads, ctx.rows, ctx.dtypes, ctx.group, ctx.share)
        return None, None, None, None, None, *found


def sum_gradients(
    grads: Sequence[torch.Tensor],
    rows: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    group: Group,
    share: Share,
) -> list[torch.Tensor]:
    """Sum gradients over ranks; return this rank's rows of each (all rows of a replicated parameter).

    Args:
        grads: the gradients on this rank.
        rows: the number of rows of each whole parameter; `None` for a replicated parameter.
        dtypes: the dtypes of the results. Sums are in float32 or wider: in half precision each rank
            would round.
        group: the ranks.
        share: the factor of this rank's gradients.
    """
    factor = share.value
    if factor is None:
        raise NotImplementedError(
            "fully_sharded: expected a loss that computes no gradients itself, got one that "
            "differentiates with respect to parameters. Use data_parallel for this loss."
        )
    found = list(grads)
    ordered = isinstance(group, OrderedGroup)
    for dtype, places in _buckets(rows, dtypes).items():
        wide = torch.promote_types(dtype, torch.float32)
        padded = [_padded(grads[i], group) for i in places]
        by_rank = torch.cat([x.reshape(group.size, -1) for x in padded], dim=1).to(wide)
        # In place, because these copies are as large as all gradients of a unit.
        by_rank.mul_(factor)
        if ordered:
            total = share.in_order(all_to_all(by_rank, group))
        else:
            total = share.over_replicas(reduce_scatter(by_rank, group))
        parts = torch.split(total, [x.numel() // group.size for x in padded])
        for i, part, x in zip(places, parts, padded, strict=True):
            found[i] = part.reshape(len(x) // group.size, *x.shape[1:]).to(dtype)
    for dtype in dict.fromkeys(dtypes):
        places = [i for i, n in enumerate(rows) if n is None and dtypes[i] == dtype]
        if places:
            flat = torch.cat([grads[i].reshape(-1) for i in places])
            flat = flat.to(torch.promote_types(dtype, torch.float32)) * factor
            if ordered:
                summed = share.in_order(all_gather(flat, group))
            else:
                summed = share.over_replicas(all_reduce(flat, group))
            parts = torch.split(summed, [grads[i].numel() for i in places])
            for i, part in zip(places, parts, strict=True):
                found[i] = part.reshape(grads[i].shape).to(dtype)
    return found


def _buckets(
    rows: Sequence[int | None], dtypes: Sequence[torch.dtype]
) -> dict[torch.dtype, list[int]]:
    """Return the indices of the sharded tensors, by dtype."""
    found: dict[torch.dtype, list[int]] = {}
    for place, (n, dtype) in enumerate(zip(rows, dtypes, strict=True)):
        if n is not None:
            found.setdefault(dtype, []).append(place)
    return found


def _rows(whole: torch.Tensor, n: int) -> torch.Tensor:
    """Return a gathered tensor without the rows of padding at its end."""
    return whole if len(whole) == n else whole.narrow(0, 0, n)


def _padded(grad: torch.Tensor, group: Group) -> torch.Tensor:
    """Append rows of zeros to a gradient, so that all ranks get equal numbers of its rows."""
    n, _ = rows_of(grad.shape[0], group)
    missing = n * group.size - grad.shape[0]
    return torch.cat([grad, grad.new_zeros((missing, *grad.shape[1:]))]) if missing else grad
