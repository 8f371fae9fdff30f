"""Timing in turns: contenders are timed one after the other, round after round, within one run.

Read next: `noise.py`, which compares two contenders.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

__all__ = ["Timer", "Turns", "call_times", "event_times", "mean_time", "take_turns"]

Timer = Callable[[Callable[[], object], int], list[float]]


@dataclasses.dataclass(frozen=True)
class Turns:
    """Seconds per call of each contender in each round; in a round, each contender is timed once.

    Attributes:
        seconds: the median of the calls of each round, by contender.
        calls: the times of single calls over all rounds, by contender; empty if calls were not timed one
            by one.

    Example:
        >>> turns = Turns({"a": [1.0, 2.0, 1.0], "b": [3.0, 6.0, 3.0]})
        >>> turns.ratio("b", "a"), turns.fastest(["b", "a"])
        (3.0, 'a')
    """

    seconds: Mapping[str, Sequence[float]]
    calls: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)

    def median(self, name: str) -> float:
        """Return a contender's seconds per call: the median over the rounds."""
        return statistics.median(self.seconds[name])

    def fastest(self, names: Sequence[str]) -> str:
        """Return the name of the contender with the smallest median time, among `names`."""
        return min(names, key=self.median)

    def ratio(self, numerator: str, denominator: str) -> float:
        """Return the median, over the rounds, of the ratio of two contenders' times."""
        pairs = zip(self.seconds[numerator], self.seconds[denominator], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def spread(self, numerator: str, denominator: str) -> tuple[float, float]:
        """Return the lower and upper quartile of two contenders' time ratios over the rounds."""
        pairs = zip(self.seconds[numerator], self.seconds[denominator], strict=True)
        low, _, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        return low, high


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    warmup: int = 3,
    timer: Timer | None = None,
) -> Turns:
    """Time contenders that run in turn, so that other load on the machine affects all of them.

    A turn takes about `seconds`. It has at least one call, and the same number of calls in each round.
    Each round starts with another contender, so that no contender always runs after the same other one,
    whose data fill the caches. A contender with a method `reset` is reset before each turn, and called
    once before the clock starts.

    Args:
        contenders: functions without arguments, by name.
        rounds: the number of turns of each contender.
        seconds: the length of a turn.
        warmup: the number of calls of each contender before the first turn.
        timer: how the calls of a turn are timed; default: `mean_time`.

    Example:
        >>> turns = take_turns({"sum": lambda: sum(range(99))}, rounds=2, seconds=0.0)
        >>> len(turns.seconds["sum"])
        2
    """
    timer = timer or mean_time
    calls = {}
    for name, call in contenders.items():
        _reset(call)
        for _ in range(warmup):
            call()
        calls[name] = max(1, round(seconds / max(mean_time(call, 2)[0], 1e-9)))
    names = list(contenders)
    gc.collect()
    gc.freeze()  # so that the collections between turns are short
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    try:
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                gc.collect()
                _reset(contenders[name])
                found[name].append(timer(contenders[name], calls[name]))
    finally:
        gc.unfreeze()
    return Turns(
        {name: [statistics.median(turn) for turn in turns] for name, turns in found.items()},
        {name: [each for turn in turns for each in turn] for name, turns in found.items()},
    )


def mean_time(call: Callable[[], object], calls: int) -> list[float]:
    """Return a list with one number: the mean seconds of consecutive calls, timed as a whole."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return [(time.perf_counter() - start) / calls]


def call_times(call: Callable[[], object], calls: int) -> list[float]:
    """Return the seconds of each call on the CPU, including 0.1 µs for reading the clock."""
    clock, times = time.perf_counter, []
    for _ in range(calls):
        start = clock()
        call()
        times.append(clock() - start)
    return times


def event_times(call: Callable[[], object], calls: int) -> list[float]:
    """Return the seconds of each call on CUDA, from an event before it to an event after it.

    Nothing waits for the device between the calls, so that a call takes as long as in a loop: the time
    on the device, or that of its launches if these are slower.
    """
    events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]  # type: ignore[no-untyped-call]  # torch leaves it untyped
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]


def _reset(call: Callable[[], object]) -> None:
    reset = getattr(call, "reset", None)
    if reset is not None:
        reset()
        call()
