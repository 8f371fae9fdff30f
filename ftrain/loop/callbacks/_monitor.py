"""One metric that is followed: `eval/loss`, `train/accuracy`, `eval/ema/loss`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from typing import Literal

from ftrain.loop.events import EpochEnd, EvaluateEnd, Event

__all__ = ["Mode", "Monitor", "UnknownMetricError"]

Mode = Literal["min", "max"]


class UnknownMetricError(ValueError):
    """A metric that is monitored does not exist."""


class Monitor:
    """Which metric, and what makes one value better than another.

    Args:
        name: `eval/` or `train/` and the metric's name; `eval/NAME/...` of an evaluation called NAME.
        mode: whether less is better, or more.

    Raises:
        ValueError: the name has another form, or the mode is none.
    """

    def __init__(self, name: str, mode: Mode) -> None:
        split, _, metric = name.partition("/")
        if split not in ("eval", "train") or not metric:
            raise ValueError(
                f"monitor names a metric and whose it is, 'eval/loss' or 'train/loss'; found {name!r}. "
                f"Write 'eval/{metric or name}'"
            )
        if mode not in ("min", "max"):
            raise ValueError(f"mode is 'min' (less is better) or 'max', found {mode!r}")
        self.name, self.mode, self.metric = name, mode, metric
        self.event: type[Event] = EvaluateEnd if split == "eval" else EpochEnd

    def value(self, event: Event) -> float | None:
        """The metric's value, if this event has it.

        Raises:
            UnknownMetricError: it is the event that should have had it; the message names what there is.
        """
        if isinstance(event, EvaluateEnd):
            prefix = f"eval/{event.name}/" if event.name else "eval/"
        elif isinstance(event, EpochEnd):
            prefix = "train/"
        else:
            return None
        values = {prefix + name: value for name, value in event.result.values().items()}
        found = values.get(self.name)
        if found is None and self._should(event, prefix):
            raise self.unknown(values)
        return found

    def unknown(self, values: Collection[str]) -> UnknownMetricError:
        """The error that names what there is instead."""
        near = difflib.get_close_matches(self.name, values, 1, 0.5)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        return UnknownMetricError(
            f"there is no metric {self.name!r} to monitor.{meant} There are {', '.join(values)}"
        )

    def is_better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        """Whether a value is better than another, by more than so much; NaN never is."""
        if math.isnan(value):
            return False
        if than is None:
            return True
        return value < than - by if self.mode == "min" else value > than + by

    def _should(self, event: Event, prefix: str) -> bool:
        """Whether nothing but this event could have had it."""
        if not isinstance(event, self.event):
            return False
        own = prefix.count("/") == 1  # of the run, not of averaged weights or the like
        return own if "/" not in self.metric else (not own and self.name.startswith(prefix))
