"""Ranks that share a batch, and each have a part of the parameters.

Read next: `_replicas.py`, where each rank has all parameters, and `_gather.py`, the backward pass that
sums the gradients of `fully_sharded`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import nn

from ftrain.core import tree
from ftrain.core._torch_collectives import Group, all_reduce
from ftrain.core.accumulate import PartFn, Separate, Stacked, Sums, safe_weight
from ftrain.core.errors import ArgumentError
from ftrain.distributed._buckets import gathered
from ftrain.distributed._checks import refuse_derivatives
from ftrain.distributed._gather import Share
from ftrain.distributed._logical_shards import LogicalShards
from ftrain.distributed._ordered import halving_sum
from ftrain.distributed._replicas import Replicas
from ftrain.distributed._running_statistics import BufferChoice
from ftrain.distributed._sharded_optimizer import Rows, global_tensors

__all__ = ["OrderedShards", "Shards", "TensorShards"]


class TensorShards(Replicas):
    """Ranks that share a batch, each of which has some rows of the parameters and of their gradients.

    Args:
        group: the ranks that share a batch.
        module: the model.
        accumulate: the number of micro-batches into which each rank cuts its rows.
        buffers: what happens to buffers that are not BatchNorm's, by name.
        rows: the whole number of rows of each parameter; `None` for a replicated one.
        holders: the ranks that hold the rows of one copy of the parameters.
    """

    def __init__(
        self,
        group: Group,
        module: nn.Module,
        accumulate: int,
        buffers: Mapping[str, BufferChoice],
        rows: Rows,
        holders: Group,
    ) -> None:
        super().__init__(group, module, accumulate, buffers)
        self._rows, self._holders = rows, holders

    def summed(
        self,
        of_part: PartFn,
        zeros: Callable[[], Any],
        buffers: Any,
        key: torch.Tensor,
        parts: Stacked | Separate,
        written: Set[str],
    ) -> Sums:
        """Return gradients, as `ShardedTensor`s, and metrics, summed over micro-batches of all ranks."""
        sums = super().summed(of_part, zeros, buffers, key, parts, written)
        if self._holders.size > 1:
            refuse_derivatives(sums.totals)
        return sums._replace(totals=global_tensors(sums.totals, self._rows, self._holders))


class Shards(TensorShards):
    """Ranks that each have some rows of the parameters, and sum gradients in the backward pass.

    The backward passes of micro-batch `i` on all ranks run together, and sum the gradients over ranks,
    each times the rank's share of the total weight. All ranks need the same number of micro-batches.

    Args:
        group: the ranks that share a batch.
        module: the model.
        accumulate: the number of micro-batches into which each rank cuts its rows.
        buffers: what happens to buffers that are not BatchNorm's, by name.
        rows: the number of rows of each whole parameter; `None` for a replicated parameter.
        share: the factor of this rank's gradients, set before each backward pass.
        holders: the ranks that hold the rows of one copy of the parameters.
    """

    def __init__(
        self,
        group: Group,
        module: nn.Module,
        accumulate: int,
        buffers: Mapping[str, BufferChoice],
        rows: Rows,
        share: Share,
        holders: Group,
    ) -> None:
        super().__init__(group, module, accumulate, buffers, rows, holders)
        self._share = share

    def begin_backward(self, weight: torch.Tensor) -> None:
        """Set this rank's share: the weight of its micro-batch divided by that of all ranks together."""
        if self._group.size > 1:
            total = all_reduce(weight, self._group)
            self._share.begin(safe_weight(weight) / safe_weight(total), total)

    def shared_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the total weight of the micro-batches of all ranks; reset this rank's share."""
        total = self._share.total
        self._share.value = self._share.total = None
        return weight if total is None else total

    def _over_ranks(self, totals: Any, weight: torch.Tensor) -> tuple[Any, torch.Tensor]:
        return totals, all_reduce(weight, self._group)


class OrderedShards(LogicalShards):
    """Ranks that each have some rows of the parameters; sums have equal bits for any number of ranks.

    The backward pass of shard `i` of each rank sums over ranks, and the sums of all `i` follow, in the
    order of `halving_sum`.

    Args:
        group: the ranks that share a batch.
        module: the model.
        accumulate: the number of micro-batches of the steps, 1 or S.
        buffers: what happens to buffers that are not BatchNorm's, by name.
        shards: S, a power of two.
        rows: the number of rows of each whole parameter; `None` for a replicated parameter.
        share: the factor of this rank's gradients, set before each backward pass.
        holders: the ranks that hold the rows of one copy of the parameters.
    """

    def __init__(
        self,
        group: Group,
        module: nn.Module,
        accumulate: int,
        buffers: Mapping[str, BufferChoice],
        shards: int,
        rows: Rows,
        share: Share,
        holders: Group,
    ) -> None:
        super().__init__(group, module, accumulate, buffers, shards)
        if shards & (shards - 1):
            raise ArgumentError(
                "logical_shards",
                f"expected a power of two for sharded states, got {shards}",
                "Choose 8, or another power of two that is a multiple of the ranks.",
            )
        self._rows, self._share, self._holders = rows, share, holders

    def begin_backward(self, weight: torch.Tensor) -> None:
        """Set the factor of this rank's gradients to the weight of its micro-batch."""
        if self._group.size > 1:
            self._share.begin(safe_weight(weight), weight)

    def shared_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight of the gradients; 1 if they have been multiplied by their weight already."""
        if self._share.value is None:
            return weight
        self._share.value = self._share.total = None
        return torch.ones_like(weight)

    def _over_shards(self, totals: Any, weight: torch.Tensor) -> tuple[Any, torch.Tensor]:
        totals = tree.map(halving_sum, totals)
        weight = halving_sum(gathered(weight, self._group).flatten())
        return global_tensors(totals, self._rows, self._holders), weight
