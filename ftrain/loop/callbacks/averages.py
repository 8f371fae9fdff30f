"""Averages of a metric over rows of the log, to smooth a noisy curve."""

from __future__ import annotations

import math
from typing import TypedDict

from ftrain.loop.callback import Action, Log
from ftrain.loop.events import EvaluateEnd, Event, WindowEnd

__all__ = ["RunningAverage", "RunningState", "WindowedAverage", "WindowedState"]


class WindowedState(TypedDict):
    """State of `WindowedAverage`: the last values of a metric.

    Attributes:
        values: the values, oldest first.
        weights: number of steps that each value covers; 1 for an evaluation.
    """

    values: list[float]
    weights: list[int]


class RunningState(TypedDict):
    """State of `RunningAverage`: an exponential average that starts at zero.

    Attributes:
        total: weighted sum of the values.
        weight: sum of the weights, which approaches 1. The average is `total / weight`.
    """

    total: float
    weight: float


class WindowedAverage:
    """Log the mean of a metric over the last few log rows, as `loss_windowed`.

    Args:
        metric: `train/NAME` (one value per window, weighted by the window's steps) or `eval/NAME`.
        rows: number of rows.

    Raises:
        ValueError: an argument is out of range; the metric does not exist.

    Example:
        >>> import torch
        >>> from ftrain import loop
        >>> def step(state, batch):
        ...     return state, {"loss": batch.mean()}
        >>> trainer = loop.Trainer(step, [WindowedAverage(rows=2)], compile=False, log_every=1)
        >>> data = [torch.full((4, 3), x) for x in (1.0, 2.0, 4.0)]
        >>> events = trainer.events(None, data, epochs=1, kinds=(loop.Logged,))
        >>> [event.values["loss_windowed"] for event in events if event.split == "train"]
        [1.0, 1.5, 3.0]
    """

    def __init__(self, metric: str = "train/loss", *, rows: int = 10) -> None:
        if not isinstance(rows, int) or rows < 1:
            raise ValueError(
                f"rows: expected an integer of at least 1, got {rows!r}. Write rows=20."
            )
        self.metric, self.rows = metric, rows
        self._metric = _Metric(metric)
        self.listens = (self._metric.event,)

    def init(self) -> WindowedState:
        """Return the initial state, with an empty window."""
        return {"values": [], "weights": []}

    def __call__(
        self, state: WindowedState, event: Event
    ) -> tuple[WindowedState, tuple[Action, ...]]:
        """Log the mean of the metric over the last rows, up to and including its value at this event."""
        value, weight = self._metric.of(event)
        if value is None:
            return state, ()
        values = [*state["values"], value][-self.rows :]
        weights = [*state["weights"], weight][-self.rows :]
        mean = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
        new: WindowedState = {"values": values, "weights": weights}
        return new, (Log({f"{self._metric.name}_windowed": mean}),)


class RunningAverage:
    r"""Log an exponential average of a metric, as `loss_running`.

    $a \leftarrow d^n a + (1 - d^n) x$ for a row of mean $x$ over $n$ steps, corrected for its start
    at zero as in Adam. The average therefore hardly depends on `log_every`. Non-finite values are left
    out; they remain visible in the metric itself.

    Args:
        metric: `train/NAME`, or `eval/NAME`, of which each row counts as one step.
        decay: $d$, in [0, 1).

    Raises:
        ValueError: an argument is out of range; the metric does not exist.

    Example:
        >>> import torch
        >>> from ftrain import loop
        >>> def step(state, batch):
        ...     return state, {"loss": batch.mean()}
        >>> trainer = loop.Trainer(step, [RunningAverage(decay=0.5)], compile=False, log_every=1)
        >>> data = [torch.full((4, 3), x) for x in (1.0, 4.0)]
        >>> events = trainer.events(None, data, epochs=1, kinds=(loop.Logged,))
        >>> [event.values["loss_running"] for event in events if event.split == "train"]
        [1.0, 3.0]
    """

    def __init__(self, metric: str = "train/loss", *, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay!r}. Write decay=0.9.")
        self.metric, self.decay = metric, decay
        self._metric = _Metric(metric)
        self.listens = (self._metric.event,)

    def init(self) -> RunningState:
        """Return the initial state, before the metric has a value."""
        return {"total": 0.0, "weight": 0.0}

    def __call__(
        self, state: RunningState, event: Event
    ) -> tuple[RunningState, tuple[Action, ...]]:
        """Log the exponential average of the metric, up to and including its value at this event."""
        value, n = self._metric.of(event)
        if value is None or not math.isfinite(value):
            return state, ()
        factor = self.decay**n
        total = factor * state["total"] + (1 - factor) * value
        weight = factor * state["weight"] + (1 - factor)
        new: RunningState = {"total": total, "weight": weight}
        return new, (Log({f"{self._metric.name}_running": total / weight}),)


class _Metric:
    """Metric, `train/NAME` or `eval/NAME`, that is read from the events of a run."""

    def __init__(self, metric: str) -> None:
        split, _, self.name = metric.partition("/")
        if split not in ("train", "eval") or not self.name:
            raise ValueError(
                f"metric: expected 'train/NAME' or 'eval/NAME', got {metric!r}. Write 'train/loss'."
            )
        self.event: type[Event] = WindowEnd if split == "train" else EvaluateEnd

    def of(self, event: Event) -> tuple[float | None, int]:
        """Return the metric's value at an event, and the number of steps that the value covers."""
        if isinstance(event, EvaluateEnd):
            if event.name:
                return None, 0
            values, n = event.result.values(), 1
        else:
            assert isinstance(event, WindowEnd)
            values, n = dict(event.values), event.steps
        if self.name not in values:
            raise ValueError(
                f"metric: expected one of {', '.join(values)}, got {self.name!r}. Choose one of these."
            )
        return values[self.name], n
