"""One metric that is followed: `eval/loss`, `train/accuracy`, `eval/ema/loss`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from typing import Literal

from ftrain.loop.events import EpochEnd, EvaluateEnd, Event, TrainBegin, WindowEnd

__all__ = ["Mode", "Monitor", "UnknownMetricError"]

Mode = Literal["min", "max"]

#: What a result has beside the metrics of its steps.
_DERIVED = (
    "duration",
    "perplexity",
    "samples_per_second",
    "tokens_per_second",
    "grad_norm_min",
    "grad_norm_max",
)


class UnknownMetricError(ValueError):
    """A metric that is monitored does not exist.

    Attributes:
        monitor: its name.
    """

    def __init__(self, monitor: str, message: str) -> None:
        super().__init__(message)
        self.monitor = monitor


class Monitor:
    """Which metric, and what makes one value better than another.

    A name that does not exist is found as early as the names are known: of training at the end of the
    first log window, of an evaluation before the first step where its data are a loader or a list, else
    at the first evaluation. `eval/` without evaluation data is found before the first step.

    Of an ensemble, a metric's name is that of the mean over the members; `loss_min`, `loss_max` and
    `loss/member_3` follow the smallest value, the largest, or one member's.

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
        #: What `value` is to be shown.
        self.listens: tuple[type[Event], ...] = (
            TrainBegin if split == "eval" else WindowEnd,
            self.event,
        )

    def value(self, event: Event) -> float | None:
        """The metric's value, if this event has it.

        Raises:
            UnknownMetricError: it is an event that should know it; the message names what there is.
        """
        if isinstance(event, WindowEnd):
            # Of a window that was skipped as a whole it is not known which parts a metric has.
            known = [name for name, value in event.values.items() if not math.isnan(value)]
            self._check("train", tuple(event.values), known)
        elif isinstance(event, TrainBegin) and self.name.startswith("eval/"):
            if not event.plan.evaluates:
                raise UnknownMetricError(
                    self.name,
                    f"there is no metric {self.name!r} to monitor: the run has no evaluation data. "
                    "Write fit(..., eval_data=...), or monitor 'train/loss'",
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
        if found is None and self._should(event, prefix, values):
            raise self.unknown(values)
        return found

    def unknown(self, values: Collection[str]) -> UnknownMetricError:
        """The error that names what there is instead."""
        near = difflib.get_close_matches(self.name, values, 1, 0.5)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        return UnknownMetricError(
            self.name,
            f"there is no metric {self.name!r} to monitor.{meant} There are {', '.join(values)}",
        )

    def is_better(self, value: float, than: float | None, by: float = 0.0) -> bool:
        """Whether a value is better than another, by more than so much; NaN never is."""
        if math.isnan(value):
            return False
        if than is None:
            return True
        return value < than - by if self.mode == "min" else value > than + by

    def _check(self, split: str, names: Collection[str], known: Collection[str]) -> None:
        """Refuse a metric that cannot come; those of evaluations of averages are not known yet."""
        if not self.name.startswith(f"{split}/"):
            return
        whole, _, part = self.metric.partition("/")
        of_average = split == "eval" and whole not in {name.partition("/")[0] for name in names}
        unread = whole in names and whole not in known
        if self.metric in (*names, *_DERIVED) or (part and (of_average or unread)):
            return
        raise self.unknown([f"{split}/{name}" for name in names])

    def _should(self, event: Event, prefix: str, values: Collection[str]) -> bool:
        """Whether only this event could have had it."""
        if not isinstance(event, self.event):
            return False
        whole, _, part = self.metric.partition("/")
        own = prefix.count("/") == 1  # of the run, not of averaged weights or the like
        if own:
            there = {name.removeprefix(prefix).partition("/")[0] for name in values}
            return not part or whole in there
        return bool(part) and self.name.startswith(prefix)
