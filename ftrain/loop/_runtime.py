"""Objects of a run that are not saved in checkpoints: steps, data, callbacks, store and clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ftrain.loop._batches import Batches
from ftrain.loop._checkpoint_writer import CheckpointWriter
from ftrain.loop._clock import Clock
from ftrain.loop._dispatcher import Dispatcher
from ftrain.loop._garbage_collection import GarbageCollection
from ftrain.loop._one_rank import ALONE, OneRank
from ftrain.loop._run_logs import RunLogs
from ftrain.loop._signals import Signals
from ftrain.loop.events import Event, Plan

__all__ = ["Runtime"]


@dataclasses.dataclass
class Runtime:
    """Objects of a run that are not saved in checkpoints: steps, data, callbacks, store and clock.

    Attributes:
        step: `(state, batch) -> (state, metrics)`, compiled or not.
        plain_step: the same, not compiled.
        eval_step: `(state, batch) -> metrics`.
        train_data: batches with cursors.
        eval_data: batches of the evaluation, with cursors; `None`: no evaluation.
        plan: the plan of the call of `fit`.
        max_skipped: number of steps skipped in a row that ends the run; `None`: never.
        count_samples: `batch -> (samples, tokens)`.
        callbacks: the dispatcher of events to callbacks.
        checkpoints: the writer of checkpoints.
        resumed: True if the run resumes from a checkpoint.
        logs: the log files of the callbacks.
        count_eval_samples: `batch -> (samples, tokens)` for batches of the evaluation.
        ranks: the ranks of the run.
        turns: the ranks among which the batches of an evaluation are divided.
        clock: the time since the run began.
        signals: the signal handler.
        garbage: the garbage collection.
        phase: the phase named if an exception is raised: "step", "data", "evaluate", "save" or
            "callback NAME".
        wanted: `kind of event -> bool`, True for the kinds that the consumer of the generator wants.
        noticed: the messages of earlier notices that must not be emitted twice in a run.
    """

    step: Callable[[Any, Any], tuple[Any, Any]]
    plain_step: Callable[[Any, Any], tuple[Any, Any]]
    eval_step: Callable[[Any, Any], Any] | None
    train_data: Batches
    eval_data: Batches | None
    plan: Plan
    max_skipped: int | None
    count_samples: Callable[[Any], tuple[int, int]]
    count_eval_samples: Callable[[Any], tuple[int, int]]
    callbacks: Dispatcher
    checkpoints: CheckpointWriter
    resumed: bool
    logs: RunLogs
    ranks: OneRank = ALONE
    turns: OneRank = ALONE
    clock: Clock = dataclasses.field(default_factory=Clock)
    signals: Signals = dataclasses.field(default_factory=Signals)
    garbage: GarbageCollection = dataclasses.field(default_factory=GarbageCollection)
    phase: str = "data"
    wanted: Callable[[type[Event]], bool] = lambda kind: False
    noticed: set[str] = dataclasses.field(default_factory=set)

    def count_rows(self, batch: Any) -> int:
        """Return the number of rows of a training batch."""
        return self.count_samples(batch)[0]

    def has_listener(self, kind: type[Event]) -> bool:
        """Return True if a callback, or the consumer of `Trainer.events`, wants events of this class."""
        return bool(self.callbacks.listeners(kind)) or self.wanted(kind)
