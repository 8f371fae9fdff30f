"""Coordination of a run's ranks if the run has one process: decisions need no exchange.

Read next: `_many_ranks.py`, the coordination of several processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ftrain import checkpoint
from ftrain.checkpoint import Store
from ftrain.loop._clock import Clock
from ftrain.loop._signals import Signals
from ftrain.loop.events import Plan
from ftrain.loop.state import LoopState

__all__ = ["ALONE", "TOGETHER", "CountSamples", "Evaluated", "OneRank"]

CountSamples = Callable[[Any], tuple[int, int]]


class Evaluated(NamedTuple):
    """Metrics of one batch of an evaluation.

    Attributes:
        position: the number of the batch, from 0.
        metrics: the metrics of each of its parts.
        rows: the number of rows of each part.
    """

    position: int
    metrics: list[Any]
    rows: list[int]


class OneRank:
    """Coordination of a run with one process; `ManyRanks` overrides the methods for several processes.

    Attributes:
        is_main: True if this rank writes the checkpoints and loads the data of the run's directory.
        is_one: True if there is no other rank.
        size: the number of ranks that evaluate batches in turn.
        repeats: True if a rank may repeat an evaluation that ran out of memory: no other rank waits for
            it in a collective.
    """

    is_main = True
    is_one = True
    size = 1
    repeats = True

    def together(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Return a context that raises on all ranks if its body raises on one of them."""
        return contextlib.nullcontext()

    def agree(self, value: Any, what: str) -> Any:
        """Return, on every rank, the value that rank 0 passes."""
        return value

    def counting(self, count_samples: CountSamples) -> CountSamples:
        """Return a function that counts the samples of a batch on all ranks together."""
        return count_samples

    def shares_rows(self, data: Any) -> bool:
        """Return True if data is a loader that gives each rank its own rows of each batch."""
        return False

    def takes(self, position: int) -> bool:
        """Return True if this rank evaluates the batch at this position of the evaluation data."""
        return True

    def check_turns(self, batch: Any) -> None:
        """Raise unless all ranks, which take evaluation batches in turn, have the same first batch."""

    def owes_a_call(self, evaluated: int) -> bool:
        """Return True if other ranks wait for one more call of this rank's evaluation step.

        Args:
            evaluated: the number of batches that all ranks together have evaluated.
        """
        return False

    def in_order(self, evaluated: list[Evaluated]) -> list[Evaluated]:
        """Gather evaluated batches from all ranks; return them in the order of the evaluation data."""
        return evaluated

    def store(self, directory: str | os.PathLike[str], **options: Any) -> Store:
        """Return a checkpoint store for the states of the run."""
        return Store(directory, **options)

    def check_store(self, store: Store, state: Any) -> None:
        """Raise unless a store can hold the state of all ranks."""

    def load(self, path: str | os.PathLike[str], like: Any, **options: Any) -> tuple[Any, Any]:
        """Return the state and the metadata that a checkpoint holds."""
        return checkpoint.load(path, like, **options)

    def load_newest(self, store: Store, like: Any) -> LoopState:
        """Return the state of the newest checkpoint whose checksums are correct."""
        return LoopState.from_metadata(*store.load(like=like))

    def check_data(self, data: Any, argument: str) -> None:
        """Raise if a loader was created for another rank or another number of ranks."""

    def check_start(self, plan: Plan, state: LoopState) -> None:
        """Raise unless all ranks begin the same run in the same state."""

    def check_batch(self, batch: Any) -> None:
        """Raise unless the first batches of all ranks have the same structure."""

    def begin_boundary(self, step: int, pending: Sequence[Any]) -> None:
        """Exchange signals and the time; raise unless ranks have the same step and pending actions."""

    def end_boundary(self, outcome: tuple[Any, ...]) -> None:
        """Raise unless logging, evaluating and saving had the same outcome on all ranks."""

    def clock(self) -> Clock:
        """Return the clock with which the loop measures the seconds of the run."""
        return Clock()

    def signals(self) -> Signals:
        """Return the context in which the loop handles Ctrl-C and SIGTERM."""
        return Signals()

    def publish(self, phase: Callable[[], str]) -> None:
        """Publish the run's current phase, from `phase()`, so that errors of other ranks can name it."""

    def failure(self, error: Exception, step: int) -> tuple[Exception, bool]:
        """Return the error that ends the run, and True if this rank writes its last checkpoint."""
        return error, True


class _Together(OneRank):
    """Coordination of ranks whose evaluation step merges the metrics of their rows of a batch."""

    repeats = False


ALONE, TOGETHER = OneRank(), _Together()
