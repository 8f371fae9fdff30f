"""Measurement of the contenders on one workload: a cell of the table."""

from __future__ import annotations

import dataclasses
import gc
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.peers.contenders import CONTENDERS, DONATED, UnsupportedError
from benchmarks.peers.loops import Loop, Losses, take_bursts
from benchmarks.peers.workloads import Workload
from ftrain.bench import Turns, compare_turns, machine, versions

__all__ = ["Cell", "Outcome", "measure", "start"]

REFERENCE = "eager-foreach"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of one contender on a workload: its times, or why it was not timed.

    Attributes:
        seconds: the mean seconds of a step in each turn; empty if the contender was not timed.
        reason: why the contender was not timed: "not installed: ...", "unsupported: ...", "failed: ..."
            or, because it does not compute the same step, "refused: ...".
        first: seconds until the first three steps were done, compilation included.
        settings: the settings of the contender.
    """

    seconds: tuple[float, ...] = ()
    reason: str = ""
    first: float = 0.0
    settings: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Results of all contenders on one workload.

    Attributes:
        workload: the model, loss and data that were trained.
        outcomes: the result of each contender, by name.
        machine: the machine, with its load at the start.
        versions: the versions of Python, torch and the peers.
    """

    workload: Workload
    outcomes: dict[str, Outcome]
    machine: dict[str, Any]
    versions: dict[str, str]

    @property
    def refused(self) -> list[str]:
        """The contenders that do not compute the same step."""
        return [n for n, one in self.outcomes.items() if one.reason.startswith("refused")]

    @property
    def turns(self) -> Turns:
        """The seconds per step in each turn, of the contenders that were timed."""
        return Turns({name: one.seconds for name, one in self.outcomes.items() if one.seconds})

    def best(self, names: Sequence[str]) -> str | None:
        """Return the fastest of the named contenders; `None` if none of them was timed."""
        timed = [name for name in names if self.outcomes.get(name, Outcome()).seconds]
        return self.turns.fastest(timed) if timed else None

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON values, with medians and ratios."""
        turns, rows = self.turns, {}
        for name, one in self.outcomes.items():
            rows[name] = row = {**dataclasses.asdict(one), "title": CONTENDERS[name].title}
            if one.seconds:
                row["median"] = turns.median(name)
            if one.seconds and DONATED in turns.seconds:
                ratio = compare_turns(one.seconds, turns.seconds[DONATED])
                row["over ftrain-donated"] = {
                    "ratio": ratio.ratio,
                    "interval": [ratio.low, ratio.high] if math.isfinite(ratio.high) else None,
                    "is more than noise": ratio.is_real,
                }
        return {
            "workload": self.workload.title,
            "machine": self.machine,
            "versions": self.versions,
            "contenders": rows,
        }


def measure(
    work: Workload,
    names: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    backend: str | None = "inductor",
) -> Cell:
    """Time the contenders in turns, except those whose first three losses are not the same.

    Args:
        work: what to train.
        names: the contenders, among the keys of `CONTENDERS`.
        rounds: the number of turns of each.
        seconds: the length of a turn.
        backend: the backend of `torch.compile`; `None` compiles nothing but ftrain's own graphs.
    """
    torch.compiler.reset()
    for name in ("torch._dynamo", "torch._logging", "torch._inductor"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they warn of each compiled optimizer
    here, software = machine(), versions()
    # Dynamo counts the programs of a function's code, which the loops of contenders share.
    with torch._dynamo.config.patch(recompile_limit=64):
        outcomes, loops = start(work, names, backend)
        for name in loops:
            software |= CONTENDERS[name].versions
        turns = take_bursts(loops, rounds=rounds, seconds=seconds)
    for name, times in turns.seconds.items():
        outcomes[name] = dataclasses.replace(outcomes[name], seconds=tuple(times))
    loops.clear()
    gc.collect()
    return Cell(work, outcomes, here, software)


def start(
    work: Workload, names: Sequence[str], backend: str | None
) -> tuple[dict[str, Outcome], dict[str, Loop]]:
    """Build the contenders, take their first three steps, and check that their losses are the same.

    The losses are compared with those of the eager hand-written loop or, if it cannot run, with those of
    the first contender.

    Returns:
        The outcomes, not timed yet, and the loops of the contenders that can be timed.
    """
    loops: dict[str, Loop] = {}
    outcomes: dict[str, Outcome] = {}
    losses: dict[str, Losses] = {}
    for name in names:
        outcomes[name], found, loop = _start(name, work, backend)
        if loop is not None:
            loops[name], losses[name] = loop, found
    for name, difference in other_losses(work, losses).items():
        outcomes[name] = dataclasses.replace(outcomes[name], reason=f"refused: {difference}")
        del loops[name]
    return outcomes, loops


def _start(name: str, work: Workload, backend: str | None) -> tuple[Outcome, Losses, Loop | None]:
    """Build a contender and take its first three steps."""
    contender = CONTENDERS[name]
    settings = contender.settings + (f", k = {work.scan}" if name.startswith("ftrain-scan") else "")
    if contender.missing:
        return Outcome(reason=f"not installed: {contender.missing}", settings=settings), [], None
    start, losses = time.perf_counter(), Losses()
    try:
        loop = contender.build(work, backend)
        loop(3, losses)
    except UnsupportedError as error:
        return Outcome(reason=f"unsupported: {error}", settings=settings), [], None
    except Exception as error:  # a failed peer is a row of the table, and others are measured
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(reason=f"failed: {line[:300]}", settings=settings), [], None
    return Outcome(first=time.perf_counter() - start, settings=settings), losses[:3], loop


def other_losses(work: Workload, losses: Mapping[str, Losses]) -> dict[str, str]:
    """Return a message for each contender whose losses differ by more than rounding, by name."""
    if not losses:
        return {}
    base = REFERENCE if REFERENCE in losses else next(iter(losses))
    found = {}
    for name, theirs in losses.items():
        tolerance = work.tolerance + CONTENDERS[name].tolerance
        pairs = zip(losses[base], theirs, strict=True)
        if not all(abs(a - b) <= tolerance * abs(a) for a, b in pairs):
            found[name] = f"expected the losses of {base}, {losses[base]}, got {theirs}"
    return found
