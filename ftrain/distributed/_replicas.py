"""Ranks with equal states that share a batch, whose gradients the backend sums in its own order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from torch import nn

from ftrain.core import random
from ftrain.core._torch_collectives import Group
from ftrain.core.accumulate import (
    PartFn,
    Separate,
    Stacked,
    Sums,
    accumulate_micro_batches,
    common_dtype,
)
from ftrain.core.ranks import Ranks
from ftrain.distributed._buckets import gathered, summed
from ftrain.distributed._checks import refuse_derivatives
from ftrain.distributed._metrics import merged_over_ranks, same_on_all_ranks
from ftrain.distributed._running_statistics import BufferChoice, RunningStatistics

__all__ = ["Replicas"]


class Replicas(Ranks):
    """Ranks that sum gradients first over their own micro-batches, then over all ranks.

    Rank `r` has the micro-batches `r * k` to `r * k + k - 1` of one process with `W * k` micro-batches.

    Args:
        group: the ranks.
        module: the model.
        accumulate: the number of micro-batches into which each rank cuts its rows.
        buffers: what happens to buffers that are not BatchNorm's, by name.

    Attributes:
        parts: `accumulate`.
        total: the number of micro-batches of all ranks.
        cuts_whole: False.
    """

    cuts_whole = False

    def __init__(
        self,
        group: Group,
        module: nn.Module,
        accumulate: int,
        buffers: Mapping[str, BufferChoice],
    ) -> None:
        self._group = group
        self._statistics = RunningStatistics(module, buffers)
        self.parts, self.total = accumulate, accumulate * group.size

    def summed(
        self,
        of_part: PartFn,
        zeros: Callable[[], Any],
        buffers: Any,
        key: torch.Tensor,
        parts: Stacked | Separate,
        written: Set[str],
    ) -> Sums:
        """Return gradients and metrics, summed over all micro-batches, the same bits on each rank."""
        group, k = self._group, parts.k
        if k == group.size * k == 1:
            keys = key[None]  # one process without micro-batches does not split its key
        else:
            keys = random.split(key, group.size * k)[group.rank * k : (group.rank + 1) * k]
        if isinstance(parts, Separate) and k == 1 and not parts.weights:
            sums = of_part(buffers, keys[0], parts.batches[0], None)
        else:
            sums = accumulate_micro_batches(of_part, zeros(), buffers, keys, parts)
        if group.size == 1:
            return sums
        refuse_derivatives(sums.totals)
        if k != self.parts:  # MicroBatches
            checked = same_on_all_ranks(sums.weight, [k], group, "the number of micro-batches")
            sums = sums._replace(weight=checked)
        weight = sums.weight.to(common_dtype(sums.totals))
        totals, weight = self._over_ranks(sums.totals, weight)
        after = {name: sums.buffers[name] for name in self._statistics.sent(written)}
        stacked = gathered(after, group)
        combined = self._statistics.combined(buffers, stacked, group.size)
        return Sums(
            totals,
            weight,
            {**sums.buffers, **combined},
            merged_over_ranks(sums.metrics, group),
        )

    def _over_ranks(self, totals: Any, weight: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Return totals and weight, summed over ranks."""
        totals, weight = summed((totals, weight), self._group)
        return totals, weight
