"""Immutable parts of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ftrain.checkpoint import Store
from ftrain.loop._data import Batches
from ftrain.loop.events import Plan

__all__ = ["Parts"]


@dataclasses.dataclass(frozen=True)
class Parts:
    """Immutable parts of a run.

    Attributes:
        step: `(state, batch) -> (state, metrics)`, compiled or not.
        plain_step: the same, not compiled.
        eval_step: `(state, batch) -> metrics`.
        train_data: batches with cursors.
        eval_data: the same; `None`: no evaluation.
        plan: the plan of the call of `fit`.
        save_every: steps between checkpoints; `None`: at the end of each epoch.
        store: the checkpoint store; `None`: no checkpoints.
        owns_store: True if the store was created for this run, and is closed at its end.
        max_skipped: number of steps skipped in a row that ends the run; `None`: never.
        count: `batch -> (samples, tokens)`.
    """

    step: Callable[[Any, Any], tuple[Any, Any]]
    plain_step: Callable[[Any, Any], tuple[Any, Any]]
    eval_step: Callable[[Any, Any], Any] | None
    train_data: Batches
    eval_data: Batches | None
    plan: Plan
    save_every: int | None
    store: Store | None
    owns_store: bool
    max_skipped: int | None
    count: Callable[[Any], tuple[int, int]]
