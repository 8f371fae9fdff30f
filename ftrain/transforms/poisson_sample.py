"""Poisson sampling of batches, which the guarantees of DP-SGD assume.

Read next: `private.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ftrain.core import random

__all__ = ["PoissonSample", "poisson_sample"]


class PoissonSample(NamedTuple):
    """Batch of random size, in a fixed number of rows.

    Attributes:
        indices: int64 `(capacity,)`: positions of the examples, ascending; 0 in rows without an example.
        mask: bool `(capacity,)`: True for rows with an example. Multiply the losses by it.
        dropped: int64, 0-d: the number of examples that were drawn but exceeded the capacity.
    """

    indices: Tensor
    mask: Tensor
    dropped: Tensor


def poisson_sample(key: Tensor, count: int, sample_rate: float, capacity: int) -> PoissonSample:
    """Return a batch that each of `count` examples enters independently with probability `sample_rate`.

    Pass `batch_size=count * sample_rate` to `private_steps`. A capacity six standard deviations above
    this mean is exceeded about once in 10^9 batches.

    Args:
        key: a single key, int32 `(2,)`; one for each batch, `fold_in(key, step)`.
        count: the number of examples.
        sample_rate: the probability, at most 1.
        capacity: the number of rows.

    Returns:
        `PoissonSample(indices, mask, dropped)`.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> sample = poisson_sample(random.key(0), 1000, 0.01, 24)
        >>> int(sample.mask.sum()), int(sample.dropped)
        (15, 0)
    """
    if not 0 <= sample_rate <= 1:
        raise ValueError(
            f"sample_rate: expected a number from 0 to 1, got {sample_rate!r}. Pass the expected batch "
            "size over the number of examples."
        )
    if not 1 <= capacity <= count:
        raise ValueError(
            f"capacity: expected 1 to {count}, the number of examples, got {capacity!r}. Pass a number "
            "in this range."
        )
    enters = random.uniform(key, (count,), torch.float64) < sample_rate
    order = enters.logical_not().sort(stable=True).indices[:capacity]
    mask = enters[order]
    dropped = enters.sum() - mask.sum()
    return PoissonSample(torch.where(mask, order, torch.zeros_like(order)), mask, dropped)
