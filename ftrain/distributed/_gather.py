"""Differentiable gathering of parameters from shards.

The forward pass gathers the rows of all ranks; the backward pass sums the gradients of all ranks, and
returns this rank's rows of the sum. Tensors of one dtype travel together, in one collective.

Read next: `_units.py`, which decides when parameters are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ftrain.core._torch_collectives import Group, all_gather, all_reduce, reduce_scatter
from ftrain.distributed._sharded_tensor import rows_of

__all__ = ["Share", "gather_parameters", "sum_gradients"]


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

    def over_replicas(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the sum of a gradient over the ranks that hold the same rows."""
        return gradient if self.replicas is None else all_reduce(gradient, self.replicas)


def gather_parameters(
    tensors: Sequence[torch.Tensor], rows: Sequence[int | None], group: Group, share: Share
) -> list[torch.Tensor]:
    """Gather whole parameters from the rows of all ranks; the backward pass sums gradients over ranks.

    Args:
        tensors: this rank's rows of each parameter, or a replicated parameter.
        rows: the number of rows of each whole parameter; `None` for a replicated parameter.
        group: the ranks.
        share: the factor of this rank's gradients.
    """
    if not tensors or (group.size == 1 and share.replicas is None):
        return list(tensors)
    return list(_Gather.apply(tuple(rows), group, share, *tensors))  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Sequence[int | None], group: Group, share: Share, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.rows, ctx.group, ctx.share = rows, group, share
        ctx.dtypes = [x.dtype for x in tensors]
        gathered = [x.view_as(x) for x in tensors]  # of replicated parameters
        for places in _buckets(rows, ctx.dtypes).values():
            parts = [tensors[i] for i in places]
            together = all_gather(torch.cat([x.reshape(-1) for x in parts]), group)
            columns = torch.split(together, [x.numel() for x in parts], dim=1)
            for i, x, column in zip(places, parts, columns, strict=True):
                whole = column.reshape(-1, *x.shape[1:])
                gathered[i] = whole.narrow(0, 0, rows[i])  # type: ignore[arg-type]
        return tuple(gathered)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        found = sum_gradients(grads, ctx.rows, ctx.dtypes, ctx.group, ctx.share)
        return None, None, None, *found


def sum_gradients(
    grads: Sequence[torch.Tensor],
    rows: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    group: Group,
    share: Share,
) -> list[torch.Tensor]:
    """Sum gradients over ranks; return this rank's rows of each sum, or all if it is replicated.

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
            "fully_sharded: expected a loss whose gradient the step takes, got one that itself "
            "differentiates with respect to parameters. Use data_parallel for this loss."
        )
    found = list(grads)
    for dtype, places in _buckets(rows, dtypes).items():
        blocks = [_blocks(grads[i], group).flatten(1) for i in places]
        flat = torch.cat(blocks, dim=1).to(torch.promote_types(dtype, torch.float32))
        summed = share.over_replicas(reduce_scatter(flat * factor, group))
        for i, part in zip(places, torch.split(summed, [x.shape[1] for x in blocks]), strict=True):
            found[i] = part.reshape(-1, *grads[i].shape[1:]).to(dtype)
    for dtype in dict.fromkeys(dtypes):
        places = [i for i, n in enumerate(rows) if n is None and dtypes[i] == dtype]
        if places:
            flat = torch.cat([grads[i].reshape(-1) for i in places])
            flat = flat.to(torch.promote_types(dtype, torch.float32)) * factor
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


def _blocks(grad: torch.Tensor, group: Group) -> torch.Tensor:
    """Split a tensor into the rows of each rank, padded: `[rows, ...]` becomes `[ranks, n, ...]`."""
    n, _ = rows_of(grad.shape[0], group)
    missing = n * group.size - grad.shape[0]
    if missing:
        grad = torch.cat([grad, grad.new_zeros((missing, *grad.shape[1:]))])
    return grad.reshape(group.size, n, *grad.shape[1:])
