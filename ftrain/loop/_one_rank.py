"""Ranks of a run in one process. Read next: `_many_ranks.py`, the same for several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ftrain.loop._clock import Clock
from ftrain.loop._signals import Signals
from ftrain.loop.events import Plan
from ftrain.loop.state import LoopState

__all__ = ["ALONE", "CountSamples", "Evaluated", "OneRank"]

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
    """The only process of a run, which has nobody to agree with.

    Attributes:
        is_main: True if this rank writes the checkpoints and loads the data of the run's directory.
        is_one: True if there is no other rank.
    """

    is_main = True
    is_one = True

    def together(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Return a context that ends on all ranks with an exception, or on none."""
        return contextlib.nullcontext()

    def agree(self, value: Any, what: str) -> Any:
        """Return the value of rank 0."""
        return value

    def counting(self, count_samples: CountSamples) -> CountSamples:
        """Return the function that counts the samples of a batch over all ranks."""
        return count_samples

    def shares_rows(self, data: Any) -> bool:
        """Return True if a loader gives each rank its rows of each batch."""
        return False

    def takes(self, position: int) -> bool:
        """Return True if this rank evaluates the batch at this position."""
        return True

    def in_order(self, evaluated: list[Evaluated]) -> list[Evaluated]:
        """Return the metrics of the batches that all ranks have evaluated, by position."""
        return evaluated

    def check_data(self, data: Any, argument: str) -> None:
        """Raise unless a loader gives each rank its own rows."""

    def check_start(self, plan: Plan, state: LoopState) -> None:
        """Raise unless all ranks begin the same run in the same state."""

    def check_batch(self, batch: Any) -> None:
        """Raise unless the first batches of all ranks have the same structure."""

    def begin_boundary(self, step: int, pending: Sequence[Any]) -> None:
        """Agree on signals and on the time; raise unless all ranks are at the same boundary."""

    def end_boundary(self, outcome: tuple[Any, ...]) -> None:
        """Raise unless the boundary had the same outcome on all ranks."""

    def clock(self) -> Clock:
        """Return the clock of the run."""
        return Clock()

    def signals(self) -> Signals:
        """Return the signal handler of the run."""
        return Signals()

    def publish(self, phase: Callable[[], str]) -> None:
        """Publish the phase of the run, which the function returns, for the messages of other ranks."""

    def failure(self, error: Exception, step: int) -> tuple[Exception, bool]:
        """Return the error that ends the run, and True if this rank saves in the place of rank 0."""
        return error, False


ALONE = OneRank()
