"""Replacement of a run's last state by the state of its best checkpoint: `fit(..., load_best=True)`."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from ftrain.checkpoint import Store
from ftrain.loop._one_rank import OneRank
from ftrain.loop.events import LoopWarning
from ftrain.loop.result import FitResult

__all__ = ["check_keeps_best", "with_best_state"]

_REMEDY = (
    "Write Trainer(..., [callbacks.Checkpointing(best=1, monitor='eval/loss')], "
    "store=checkpoint.Store('runs/first/checkpoints', keep_best=1, metric='eval/loss'))."
)


def check_keeps_best(store: Any) -> None:
    """Raise `ValueError` unless a checkpoint store keeps the best checkpoints of a run."""
    if not isinstance(store, Store) or not store.keeps_best:
        got = "a store that keeps none" if store is not None else "no store"
        raise ValueError(
            f"load_best: expected a trainer whose store keeps best checkpoints, got {got}. {_REMEDY}"
        )


def with_best_state(result: FitResult, store: Any, ranks: OneRank) -> FitResult:
    """Put the best checkpoint's state and path in a run's result, unless the run was interrupted."""
    if result.status not in ("completed", "stopped"):
        return result
    best = store.best() if ranks.is_main or store.collective else None
    path = ranks.agree(best, "the best checkpoint")
    if path is None:
        warnings.warn(
            f"load_best: no checkpoint has the metric of the store; the result has the last state. "
            f"{_REMEDY}",
            LoopWarning,
            stacklevel=3,
        )
        return result
    state, _ = ranks.load(path, result.state, on_change="ignore")
    return dataclasses.replace(result, state=state, checkpoint=str(path))
