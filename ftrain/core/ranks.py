"""Protocol of the ranks that share a batch: which keys they use, and how their results are combined.

`ftrain.distributed` implements it; a step of one process has none.

Read next: `_mean_loss.py`, which calls it between the sum over micro-batches and the one division.
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
        cuts_whole: a single micro-batch is cut like several, so that it is the body of a loop.
    """

    parts: int
    total: int
    cuts_whole: bool

    def begin_backward(self, weight: torch.Tensor) -> None:
        """Note the weight of the micro-batch whose backward pass is next.

        Needed if the backward pass sums over ranks; by default, the pass of a rank is its own.
        """
        return

    def shared_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the factor of the gradients of a micro-batch: its weight, or that of all ranks."""
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
            of_part: the function of one part.
            zeros: returns the start of its totals.
            buffers: the buffers before the first part.
            key: the key of the whole batch, the same on all ranks.
            parts: the micro-batches of this rank.
            written: the names of the buffers that the model writes to; filled by calls of `of_part`.
        """


#: `(module, accumulate) -> Ranks`: of a model without weights, and the micro-batches of a step.
BuildRanks = Callable[[nn.Module, int], Ranks]
