"""Loops of contenders, and their timing in turns.

A loop takes a number of training steps and returns the mean seconds of a step. It keeps its model and
optimizer between calls. Its time does not include the work around the steps, such as the set-up of a
trainer.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import IterableDataset

from benchmarks.contenders import Batch
from ftrain.bench import Turns

__all__ = ["Feed", "Loop", "Losses", "stepwise", "take_bursts", "trained"]

Losses = list[float]
# `loop(steps, losses)`: appends the loss of each step if `losses` is a list.
Loop = Callable[[int, Losses | None], float]


def stepwise(step: Callable[[], Any], per_call: int = 1) -> Loop:
    """Return the loop of a function that takes `per_call` steps at each call."""

    def loop(steps: int, losses: Losses | None = None) -> float:
        calls = -(-steps // per_call)
        start = time.perf_counter()
        for _ in range(calls):
            loss = step()
            if losses is not None:
                losses.extend([float(loss)] if per_call == 1 else map(float, loss))
        return (time.perf_counter() - start) / (calls * per_call)

    return loop


class Feed(IterableDataset[Batch]):
    """Batches for a trainer that runs its own loop, with the time at which it asks for each batch.

    A trainer may ask for batches ahead of time. So the clock starts after `WARM` steps, and batches for
    `AHEAD` more steps follow the last timed step.
    """

    WARM, AHEAD = 2, 2

    def __init__(self, micro_batches: Sequence[Batch], accumulate: int) -> None:
        self.batches: Iterator[Batch] = itertools.cycle(micro_batches)
        self.accumulate = accumulate
        self.times: list[float] = []
        self.steps = 0

    def start(self, steps: int, timed: bool) -> int:
        """Prepare the feed for a run; return the number of steps of the run."""
        self.times, self.timed = [], steps
        self.steps = steps + (self.WARM + self.AHEAD if timed else 0)
        return self.steps

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        for index in range(len(self)):
            if index % self.accumulate == 0:
                self.times.append(time.perf_counter())
            yield next(self.batches)

    def seconds(self) -> float:
        """Return the mean seconds of the timed steps."""
        return (self.times[self.WARM + self.timed] - self.times[self.WARM]) / self.timed


def trained(feed: Feed, fit: Callable[[int], object], seen: list[Any], accumulate: int) -> Loop:
    """Return the loop of a trainer that reads batches from a `Feed`.

    Args:
        feed: the batches that the trainer reads.
        fit: a function that trains for a number of steps.
        seen: a list to which `fit` appends the loss of each micro-batch.
        accumulate: the number of micro-batches of a step.
    """

    def loop(steps: int, losses: Losses | None = None) -> float:
        seen.clear()
        fit(feed.start(steps, timed=losses is None))
        if losses is None:
            return feed.seconds()
        found = [float(each) for each in seen]
        losses.extend(
            sum(found[i : i + accumulate]) / accumulate for i in range(0, len(found), accumulate)
        )
        return 0.0

    return loop


def take_bursts(loops: Mapping[str, Loop], *, rounds: int, seconds: float) -> Turns:
    """Return the times of loops that run in turn, in bursts of about `seconds`.

    Each round starts with another loop. A loop takes the same number of steps in each burst.
    """
    steps = {}
    for name, loop in loops.items():
        steps[name] = max(1, round(seconds / max(loop(2, None), 1e-9)))
    names = list(loops)
    found: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # so that the collections between bursts are short
    try:
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                gc.collect()
                found[name].append(loops[name](steps[name], None))
    finally:
        gc.unfreeze()
    return Turns(found)
