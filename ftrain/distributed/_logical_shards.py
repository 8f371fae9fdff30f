"""Sums over the shards of a batch that have the same bits for every number of ranks.

A batch has a fixed number of shards S, each a micro-batch with its own rows and key. Their gradients are
summed in an order that depends on S alone: pairs, pairs of pairs and so on, if S is a power of two, so
that each rank sums its own shards before it sends one gradient; else from the first to the last, for
which each rank sends the gradients of all its shards.

gloo and NCCL sum in an order that depends on the number of ranks, so the gradients are gathered, not
reduced: a rank receives W gradients (or S, if S is not a power of two) instead of 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import nn

from ftrain.core import random, tree
from ftrain.core._each_micro_batch import each_micro_batch
from ftrain.core._torch_collectives import Group
from ftrain.core.accumulate import PartFn, Separate, Stacked, Sums, merged, split_evenly
from ftrain.core.errors import ArgumentError
from ftrain.core.metrics import Metrics
from ftrain.core.ranks import Ranks
from ftrain.core.scan import scan
from ftrain.core.state import TrainState
from ftrain.distributed._buckets import gathered
from ftrain.distributed._checks import refuse_derivatives
from ftrain.distributed._running_statistics import BufferChoice, RunningStatistics

__all__ = ["LogicalShards", "sharded_evaluation"]


class LogicalShards(Ranks):
    """Ranks that divide a batch of S shards, so that sums do not depend on the number of ranks.

    Args:
        group: the ranks.
        module: the model.
        accumulate: the number of micro-batches of the steps, 1 or S.
        buffers: what happens to buffers that are not BatchNorm's, by name.
        shards: S.

    Attributes:
        parts: S / W, the number of shards of this rank.
        total: S.
        cuts_whole: True.

    Raises:
        ValueError: S is not a multiple of the number of ranks; `accumulate` is neither 1 nor S.
    """

    cuts_whole = True

    def __init__(
        self,
        group: Group,
        module: nn.Module,
        accumulate: int,
        buffers: Mapping[str, BufferChoice],
        shards: int,
    ) -> None:
        if not isinstance(shards, int) or shards < 1 or shards % group.size:
            raise ArgumentError(
                "logical_shards",
                f"expected a positive multiple of the {group.size} ranks, got {shards!r}",
                "Choose a multiple of every number of ranks that you will use, such as 8.",
            )
        if accumulate not in (1, shards):
            raise ArgumentError(
                "logical_shards",
                f"expected steps with accumulate=1 for logical_shards={shards}, because the shards of "
                f"a rank are its micro-batches, got accumulate={accumulate}",
                "Leave accumulate out, and choose logical_shards by the rows that fit in memory.",
            )
        self._group = group
        self._statistics = RunningStatistics(module, buffers)
        self.parts, self.total = shards // group.size, shards

    def summed(
        self,
        of_part: PartFn,
        zeros: Callable[[], Any],
        buffers: Any,
        key: torch.Tensor,
        parts: Stacked | Separate,
        written: Set[str],
    ) -> Sums:
        """Sum gradients and metrics over all shards, with the same bits for any number of ranks."""
        group, k, total = self._group, self.parts, self.total
        if parts.k != k:
            raise ValueError(
                f"MicroBatches: expected {k} batches, the shards of one rank with logical_shards="
                f"{total}, got {parts.k}. Pass {k} batches."
            )
        keys = random.split(key, total)[group.rank * k : (group.rank + 1) * k]
        each = each_micro_batch(of_part, buffers, keys, parts)
        refuse_derivatives(each.totals)
        totals, weight = self._over_shards(each.totals, each.weight)
        after = {name: each.buffers[name] for name in self._statistics.sent(written)}
        after, metrics = tree.map(lambda x: x.flatten(0, 1), gathered((after, each.metrics), group))
        now = {name: b[-1] for name, b in each.buffers.items()}
        now |= self._statistics.combined(buffers, after, total)
        return Sums(totals, weight, now, merged(metrics, total))

    def _over_shards(self, totals: Any, weight: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Sum totals and weights over the shards of all ranks, given those of this rank's shards."""
        sums = (totals, weight)
        if self.total & (self.total - 1) == 0:
            parts_of_all = gathered(tree.map(pairwise_sum, sums), self._group)
            totals, weight = tree.map(pairwise_sum, parts_of_all)
        else:
            parts_of_all = gathered(sums, self._group)
            totals, weight = tree.map(lambda x: sequential_sum(x.flatten(0, 1)), parts_of_all)
        return totals, weight


def sharded_evaluation(
    eval_step: Callable[[TrainState, Any], Metrics], group: Group, shards: int
) -> Callable[[TrainState, Any], Metrics]:
    """Return an `eval_step` that evaluates each shard alone and merges metrics in order of shards."""

    def evaluate(state: TrainState, batch: Any) -> Metrics:
        try:
            parts = split_evenly(batch, shards // group.size)
        except (TypeError, ValueError) as error:
            error.add_note(f"logical_shards={shards} splits the batches of an evaluation too.")
            raise

        def of_one(carry: Any, tensors: list[torch.Tensor]) -> tuple[Any, Metrics]:
            # A copy in fresh memory, as in training, because bits may depend on the alignment.
            return carry, eval_step(state, parts.build([x.clone() for x in tensors]))

        _, stacked = scan(of_one, (), parts.tensors)
        return merged(tree.map(lambda x: x.flatten(0, 1), gathered(stacked, group)), shards)

    return evaluate


def pairwise_sum(stacked: torch.Tensor) -> torch.Tensor:
    """Return the sum over the leading axis: sums of pairs, then sums of pairs of those, and so on.

    The length is a power of two. A block of 2^i entries has the same sum alone and within a longer axis.

    >>> pairwise_sum(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor(10.)
    """
    while len(stacked) > 1:
        stacked = stacked[0::2] + stacked[1::2]
    return stacked[0]


def sequential_sum(stacked: torch.Tensor) -> torch.Tensor:
    """Return the sum over the leading axis, from the first entry to the last.

    >>> sequential_sum(torch.tensor([1.0, 2.0, 3.0]))
    tensor(6.)
    """
    total = stacked[0]
    for i in range(1, len(stacked)):
        total = total + stacked[i]
    return total
