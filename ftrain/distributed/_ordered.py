"""Sums over ranks whose bits do not depend on the number of ranks.

gloo and NCCL sum in an order that depends on the number of ranks. Here the entries of all ranks are
exchanged unreduced, and summed by halves: entry `i` with entry `i + n / 2`, and so on. If a rank has the
shards `rank * k` to `rank * k + k - 1` of a batch, the sum over ranks of their first shards, of their
second ones and so on, and then over the k sums, is the sum over all shards in this order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ftrain.core._torch_collectives import Group

__all__ = ["OrderedGroup", "halving_sum"]


@dataclass(frozen=True)
class OrderedGroup(Group):
    """Group of ranks whose sums and sharded operators give the same bits as a single process."""


def halving_sum(stacked: torch.Tensor) -> torch.Tensor:
    """Return the sum over the leading axis, computed by adding the second half to the first repeatedly.

    The length of the axis is a power of two.

    >>> halving_sum(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor(10.)
    """
    while len(stacked) > 1:
        first, second = stacked.chunk(2)
        stacked = first + second
    return stacked[0]
