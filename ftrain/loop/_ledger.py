"""Metrics of a run: pending after each step, read at boundaries, folded by window and epoch."""

from __future__ import annotations

from typing import Any

from ftrain.loop._clock import Clock
from ftrain.loop._columns import Columns, read
from ftrain.loop._members import ONE, members_of
from ftrain.loop._running import Running
from ftrain.loop._skips import Skip, counted
from ftrain.loop.events import Progress
from ftrain.loop.result import EpochResult
from ftrain.loop.state import LoopState

__all__ = ["Ledger"]


class Ledger:
    """Metrics of the current log window and epoch.

    Attributes:
        pending: metrics of the steps since the last read.
        rows: number of samples of each of these steps.
        window: metrics since the last row of the log.
        epoch: metrics since the epoch began.
        nonfinite: number of steps skipped in a row up to the last read; in an ensemble, one number per
            member.
        skipped: skipped steps of this window, if the run uses no loss scaling.
    """

    def __init__(self, loop: LoopState, clock: Clock) -> None:
        self.pending: list[Any] = []
        self.rows: list[int] = []
        self.window, self.epoch = loop.window, loop.epoch
        self.nonfinite = loop.nonfinite
        self.skipped: list[Skip] = []
        self._clock = clock
        self._members = members_of(loop.train)
        self._read_at = loop.progress
        # The duration of a window or an epoch that a previous process began is unknown.
        self._window_began = None if loop.window.steps else clock.read()
        self._epoch_began = None if loop.progress.batch else clock.read()

    def read(self, progress: Progress) -> None:
        """Read the pending metrics; the only place that waits for the steps."""
        at, self._read_at = self._read_at, progress
        found = read(self.pending, self.rows, self._members)
        self.pending.clear()
        self.rows.clear()
        for running in (self.window, self.epoch):
            for columns in found:
                running.add(columns)
            running.steps += progress.step - at.step
            running.samples += progress.samples - at.samples
            running.tokens += progress.tokens - at.tokens
        n = 0
        for columns in found:
            n = self._watch(columns, at._replace(epoch=progress.epoch), n)

    def begin_epoch(self, progress: Progress) -> None:
        """Start another epoch; all earlier steps must have been read."""
        self.epoch = Running()
        self._read_at = progress
        self._epoch_began = self._clock.read()

    def end_window(self, progress: Progress) -> tuple[Running, float | None]:
        """Return the metrics of the window and its duration, and start another window."""
        self.read(progress)
        window, began, now = self.window, self._window_began, self._clock.read()
        self.window, self._window_began, self.skipped = Running(), now, []
        return window, None if began is None else now - began

    def epoch_result(self, progress: Progress, whole: bool = True) -> EpochResult:
        """Return the metrics of the epoch so far."""
        self.read(progress)
        began, found = self._epoch_began, self.epoch
        duration = None if began is None else self._clock.read() - began
        return found.result("train", progress.epoch, progress.step, duration, whole)

    def _watch(self, columns: Columns, at: Progress, n: int) -> int:
        """Count skipped steps in columns that begin n steps after `at`; return n after these steps."""
        steps, skipped = columns.steps, columns.columns.get("skipped")
        if skipped is None or not skipped.kind:
            self.nonfinite = 0
            return n + steps
        single = skipped.members == ONE
        before = self.nonfinite if isinstance(self.nonfinite, tuple) else (self.nonfinite,)
        if len(before) != max(skipped.members, 1):
            before = (0,) * max(skipped.members, 1)
        counts = []
        for member, (count, fields) in enumerate(zip(before, skipped.of_members(), strict=True)):
            counts.append(counted(fields[0], count))
            if "loss_scale" not in columns.columns:  # with loss scaling, skips are expected
                self.skipped += [
                    Skip(at.step + i, at.epoch, at.batch + i, None if single else member)
                    for i, one in enumerate(fields[0], n + 1)
                    if one
                ]
        self.nonfinite = counts[0] if single else tuple(counts)
        return n + steps
