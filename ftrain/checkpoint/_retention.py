"""Retention policy: a pure function that returns the checkpoints of a run to keep.

Read next: `store.py`, which deletes the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

__all__ = ["RetentionPolicy", "StoredStep"]

Mode = Literal["min", "max"]


class StoredStep(NamedTuple):
    """Step number, metrics and time of one checkpoint of a run.

    Attributes:
        step: the step of the checkpoint.
        metrics: the metrics that it was saved with.
        seconds: the time at which it was finished.
    """

    step: int
    metrics: Mapping[str, float]
    seconds: float


@dataclasses.dataclass(frozen=True)
class RetentionPolicy:
    """Rules that select the checkpoints to keep (latest, best, every n steps); see `Store`."""

    last: int | None
    best: int | None
    metric: str
    mode: Mode
    every_steps: int | None
    every_hours: float | None

    def __post_init__(self) -> None:
        for name, value in (
            ("keep_last", self.last),
            ("keep_best", self.best),
            ("keep_every_steps", self.every_steps),
        ):
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(
                    f"{name}: expected an integer >= 1 or None, got {value!r}. Write {name}=3."
                )
        hours = self.every_hours
        if hours is not None and not (isinstance(hours, (int, float)) and hours > 0):
            raise ValueError(
                f"keep_every_hours: expected a number > 0 or None, got {hours!r}. Write "
                "keep_every_hours=1."
            )
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode: expected 'min' or 'max', got {self.mode!r}. Write mode='min'.")

    def kept(self, entries: Iterable[StoredStep]) -> set[int]:
        """Return the steps of the checkpoints in `entries` that the policy keeps.

        Example:
            >>> policy = RetentionPolicy(2, 1, "loss", "min", None, None)
            >>> sorted(policy.kept(StoredStep(step, {"loss": abs(step - 2)}, 0.0) for step in range(6)))
            [2, 4, 5]
        """
        entries = sorted(entries)
        if self.last is None:
            return {entry.step for entry in entries}
        kept = {entry.step for entry in entries[-self.last :]}
        if self.best is not None:
            kept |= {entry.step for entry in self.ranked(entries)[: self.best]}
        if self.every_steps is not None:
            kept |= {entry.step for entry in entries if entry.step % self.every_steps == 0}
        if self.every_hours is not None:
            due = -math.inf
            for entry in sorted(entries, key=lambda entry: (entry.seconds, entry.step)):
                if entry.seconds >= due:
                    kept.add(entry.step)
                    due = entry.seconds + 3600 * self.every_hours
        return kept

    def ranked(self, entries: Iterable[StoredStep]) -> list[StoredStep]:
        """Return the checkpoints that have a metric other than NaN, best first; equal ones by step."""
        sign = 1.0 if self.mode == "min" else -1.0
        with_metric = [e for e in entries if not math.isnan(e.metrics.get(self.metric, math.nan))]
        return sorted(
            with_metric, key=lambda entry: (sign * entry.metrics[self.metric], entry.step)
        )
