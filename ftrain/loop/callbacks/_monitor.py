"""Monitoring of one metric, such as `eval/loss`, `train/accuracy` or `eval/ema/loss`."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Literal

from ftrain.core._words import did_you_mean
from ftrain.loop.events import EpochEnd, EvaluateEnd, Event, TrainBegin, WindowEnd

__all__ = ["Mode", "Monitor", "UnknownMetricError"]

Mode = Literal["min", "max"]

#: Names of the values of an `EpochResult` that are computed from its metrics and its duration.
_DERIVED = (
    "duration",
    "perplexity",
    "samples_per_second",
    "tokens_per_second",
    "grad_norm_min",
    "grad_norm_max",
)


#: Pattern of metric names in other trainers: a split, a separator, and the metric.
_ELSEWHERE = re.compile(r"(?:(train|training)|val|valid|validation|eval|dev|test)[-_./ ]+(.+)")


class UnknownMetricError(ValueError):
    """Error for a monitored metric that does not exist.

    Attributes:
        monitor: name of the metric.
    """

    def __init__(self, monitor: str, message: str) -> None:
        super().__init__(message)
        self.monitor = monitor


class Monitor:
    """Name of a monitored metric, and its mode: smaller or larger values are better.

    An unknown name raises as soon as the run's metrics are known: for training at the end of the first
    log window; for an evaluation before the first step if its data are a loader or a list, else at the
    first evaluation. `eval/` without evaluation data raises before the first step.

    In an ensemble, a metric's name refers to the mean over the members; `loss_min`, `loss_max` and
    `loss/member_3` refer to the smallest value, the largest value, and the value of one member.

    Args:
        name: `eval/` or `train/` and the metric's name; `eval/NAME/...` for an evaluation called NAME.
        mode: "min" if smaller values are better, "max" if larger values are.

    Raises:
        ValueError: the name has another form, or the mode is unknown.
    """

    def __init__(self, name: str, mode: Mode) -> None:
        split, _, metric = name.partition("/")
        if split not in ("eval", "train") or not metric:
            raise ValueError(
                "monitor: expected a split and a metric, such as 'eval/loss' or 'train/loss', got "
                f"{name!r}. Did you mean {_meant(name)!r}?"
            )
        if mode not in ("min", "max"):
            raise ValueError(
                f"mode: expected 'min' (lower is better) or 'max', got {mode!r}. Write mode='min'."
            )
        self.name, self.mode, self.metric = name, mode, metric
        self.event: type[Event] = EvaluateEnd if split == "eval" else EpochEnd
        #: Kinds of event that `value` must be called with.
        self.listens: tuple[type[Event], ...] = (
            TrainBegin if split == "eval" else WindowEnd,
            self.event,
        )

    def value(self, event: Event) -> float | None:
        """Return the metric's value in an event; `None` if events of this kind do not contain it.

        Raises:
            UnknownMetricError: the event lists the metrics, and this one is missing; the message names
                the known ones.
        """
        if isinstance(event, WindowEnd):
            # If all steps of a window were skipped, a metric is NaN, and `NAME/0`, ... do not exist.
            known = [name for name, value in event.values.items() if not math.isnan(value)]
            self._check("train", tuple(event.values), known)
        elif isinstance(event, TrainBegin) and self.name.startswith("eval/"):
            if not event.plan.evaluates:
                raise UnknownMetricError(
                    self.name,
                    f"monitor: unknown metric {self.name!r}, because the run has no evaluation data. "
                    "Write fit(..., eval_data=...), or monitor 'train/loss'.",
                )
            if event.eval_metrics is not None:
                self._check("eval", event.eval_metrics, event.eval_metrics)
        if isinstance(event, EvaluateEnd):
            prefix = f"eval/{event.name}/" if event.name else "eval/"
        elif isinstance(event, EpochEnd):
            prefix = "train/"
        else:
            return None
        values = {prefix + name: value for name, value in event.result.values().items()}
        found = values.get(self.name)
        if found is None and self._must_contain(event, prefix, values):
            raise self.unknown(values)
        return found

    def unknown(self, values: Collection[str]) -> UnknownMetricError:
        """Return the error for an unknown metric; its message lists the names in `values`."""
        meant = did_you_mean(self.name, values)
        split = self.name.partition("/")[0]
        perplexity = f"{split}/perplexity"
        more = f"; {perplexity} if batches count tokens" if perplexity not in values else ""
        return UnknownMetricError(
            self.name,
            f"monitor: unknown metric {self.name!r}.{meant} Write one of {', '.join(values)}{more}.",
        )

    def is_better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        """Return True if `value` improves on `than` by more than `by`; False if `value` is NaN."""
        if math.isnan(value):
            return False
        if than is None:
            return True
        return value < than - by if self.mode == "min" else value > than + by

    def _check(self, split: str, names: Collection[str], known: Collection[str]) -> None:
        """Raise if the metric is not among `names` and cannot appear in a later event."""
        if not self.name.startswith(f"{split}/"):
            return
        whole, _, part = self.metric.partition("/")
        of_average = split == "eval" and whole not in {name.partition("/")[0] for name in names}
        unread = whole in names and whole not in known
        if self.metric in (*names, *_DERIVED) or (part and (of_average or unread)):
            return
        raise self.unknown([f"{split}/{name}" for name in names])

    def _must_contain(self, event: Event, prefix: str, values: Collection[str]) -> bool:
        """Return True if an event should contain the metric, so that its absence is an error."""
        if not isinstance(event, self.event):
            return False
        whole, _, part = self.metric.partition("/")
        own = prefix.count("/") == 1  # True unless the event is of an evaluation called NAME
        if own:
            there = {name.removeprefix(prefix).partition("/")[0] for name in values}
            return not part or whole in there
        return bool(part) and self.name.startswith(prefix)


def _meant(name: str) -> str:
    """Return ftrain's name of a metric, given its name in another trainer.

    >>> _meant("val_loss"), _meant("train_acc"), _meant("accuracy"), _meant("eval/")
    ('eval/loss', 'train/accuracy', 'eval/accuracy', 'eval/loss')
    """
    found = _ELSEWHERE.fullmatch(name.lower())
    split = "train" if found and found[1] else "eval"
    metric = (found[2] if found else name).strip("/ ") or "loss"
    if metric in ("eval", "train"):
        metric = "loss"
    return f"{split}/{'accuracy' if metric == 'acc' else metric}"
