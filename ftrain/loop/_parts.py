"""What a run is made of; fixed while it lasts."""

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
    """What a run is made of.

    Attributes:
        step: `(state, batch) -> (state, metrics)`, compiled or not.
        plain_step: the same, not compiled.
        eval_step: `(state, batch) -> metrics`.
        train_data: batches with cursors.
        eval_data: the same; `None`: nothing is evaluated.
        plan: where the run ends.
        save_every: steps between checkpoints; `None`: at the end of each epoch.
        store: where they go.
        owns_store: whether it was made for this run, and is closed with it.
        max_skipped: steps skipped in a row that end the run.
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
