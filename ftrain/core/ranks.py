"""Protocol of the ranks that share a batch: their random keys, and the sums over their results.

`ftrain.distributed` implements the protocol; a step of one process does not use it.

Read next: `_mean_loss.py`, which calls the ranks between the sum over micro-batches and the division.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, Protocol

import torch
from torch import nn

from ftrain.core.accumulate import PartFn, Separate, Stacked, Sums

__all__ = ["BuildRanks", "Ranks"]


class Ranks(Protocol):
    """Ranks that share a batch; each has its own rows, and all have the same state.

    Attributes:
        parts: the number of micro-batches into which this rank cuts its rows.
        total: the number of micro-batches of all ranks.
        cuts_whole: True if a single micro-batch is stacked like several, and is the body of a loop.
    """

    parts: int
    total: int
    cuts_whole: bool

    def begin_backward(self, weight: torch.Tensor) -> None:
        """Record the weight of the micro-batch whose backward pass is next.

        A backward pass that sums over ranks needs the weight; by default, it does not sum over ranks.
        """
        return

    def shared_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the factor that multiplies a micro-batch's gradients (default: its weight)."""
        return weight

    def summed(
        self,
        of_part: PartFn,
        zeros: Callable[[], Any],
        buffers: Any,
        key: torch.Tensor,
        parts: Stacked | Separate,
        written: Set[str],
    ) -> Sums:
        """Return the sums over the micro-batches of all ranks, the same on each rank.

        Args:
            of_part: the function of one micro-batch.
            zeros: returns the initial totals.
            buffers: the buffers before the first micro-batch.
            key: the key of the whole batch, the same on all ranks.
            parts: the micro-batches of this rank.
            written: the names of the buffers that the model writes to; filled by calls of `of_part`.
        """


#: Function `(module, accumulate) -> Ranks` of the model, without weights, and the number of
#: micro-batches of a step.
BuildRanks = Callable[[nn.Module, int], Ranks]
