"""Batches with padding rows, as `data.Loader(..., last_batch="pad")` returns them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

__all__ = ["Padded", "unpadded"]


class Padded(NamedTuple):
    """Batch whose last rows may be padding, and the weight of each row.

    The losses of `tasks` use these weights; a custom loss function begins with `batch, weight = batch`.

    Attributes:
        batch: the rows, padding included.
        weight: float32 `(rows,)`; 1 for a sample, 0 for padding.

    Example:
        >>> batch, weight = Padded((torch.ones(2, 3), torch.zeros(2)), torch.tensor([1.0, 0.0]))
        >>> weight
        tensor([1., 0.])
    """

    batch: Any
    weight: torch.Tensor


def unpadded(batch: Any) -> Any:
    """Return the rows of a `Padded` batch without the weights; return any other batch unchanged."""
    return batch.batch if isinstance(batch, Padded) else batch
