"""Marker of losses that compare the rows of a batch; a warning if micro-batches change such a loss.

Read next: `_mean_loss.py`, which warns.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from ftrain.core.functional import describe

__all__ = ["AccumulationWarning", "compares_rows", "is_declared"]

F = TypeVar("F", bound=Callable[..., Any])


def compares_rows(loss_fn: F) -> F:
    """Declare that a loss compares the rows of a batch with each other, so that micro-batches change it.

    A step with `accumulate` above 1 or with `MicroBatches` then warns once: in a contrastive loss, each
    row would be compared with the negatives of its micro-batch instead of the whole batch.
    `ftrain.tasks.grad_cache` computes such losses with memory for a few rows.

    Args:
        loss_fn: a loss function of `make_steps`.

    Example:
        >>> @compares_rows
        ... def loss_fn(model, batch):
        ...     scores = model(batch["query"]) @ model(batch["document"]).T
        ...     return -scores.log_softmax(1).diagonal().mean()
    """
    loss_fn.compares_rows = True  # type: ignore[attr-defined]  # a function takes any
    return loss_fn


def is_declared(loss_fn: Callable[..., Any]) -> bool:
    """Return True if a loss is declared to compare rows, itself or inside of a `functools.partial`."""
    while getattr(loss_fn, "compares_rows", False) is not True:
        if not isinstance(loss_fn, functools.partial):
            return False
        loss_fn = loss_fn.func
    return True


class AccumulationWarning:
    """Warning, given once, that micro-batches change a loss that compares the rows of a batch.

    Args:
        loss_fn: the loss function.
    """

    def __init__(self, loss_fn: Callable[..., Any]) -> None:
        self._is_due, self._name = is_declared(loss_fn), describe(loss_fn)

    def __call__(self, k: int) -> None:
        """Warn, once, if splitting a batch into `k` micro-batches changes the loss."""
        if self._is_due and k > 1:
            self._is_due = False
            warnings.warn(
                f"{k} micro-batches change {self._name}: it compares the rows of a batch, and each row "
                "is compared with those of its micro-batch only. Use accumulate=1; if the batch does "
                "not fit in memory, ftrain.tasks.grad_cache(encode, loss, chunk_size=...) encodes it in "
                "chunks and keeps all negatives.",
                UserWarning,
                stacklevel=5,
            )
