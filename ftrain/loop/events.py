"""What happens in a run, as frozen values: `Trainer.events` yields them, callbacks are shown them.

    TrainBegin
      EpochBegin
        BatchBegin  [BackwardEnd]  BatchEnd  [WindowEnd]  [EvaluateBegin EvaluateEnd]  [Saved]  [Logged]
      EpochEnd  [EvaluateBegin EvaluateEnd]  [Saved]  [Logged]
    TrainEnd, after a Failure where something went wrong

A first call of a compiled step stands between CompileBegin and CompileEnd.

Read next: `callback.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from ftrain.core.metrics import Metrics
from ftrain.loop.result import EpochResult, FitResult

__all__ = [
    "BackwardEnd",
    "BatchBegin",
    "BatchEnd",
    "CompileBegin",
    "CompileEnd",
    "EpochBegin",
    "EpochEnd",
    "EvaluateBegin",
    "EvaluateEnd",
    "Event",
    "Failure",
    "Logged",
    "LoopWarning",
    "Notice",
    "Plan",
    "Progress",
    "Saved",
    "TrainBegin",
    "TrainEnd",
    "WindowEnd",
]


class LoopWarning(UserWarning):
    """Something about a run that a person should know; see `Notice`."""


class Progress(NamedTuple):
    """How far a run has come, in Python numbers: reading them waits for nothing.

    Epochs, steps and batches count from 1, here and wherever a person or a program reads them: in rows
    of the log, results, messages, the progress bar, on pages. `epochs=20` are the epochs 1 to 20, and
    what happens behind an epoch's last step (its evaluation, its checkpoint, the run's end) belongs to
    that epoch. Zero is what has not begun.

    Attributes:
        epoch: the current epoch: how many have begun.
        step: training steps taken, those skipped for a non-finite gradient included. The x-axis of
            every log.
        batch: steps taken in the current epoch; 0 again when all that belongs to it is done.
        samples: rows trained on.
        tokens: tokens trained on; 0 where the batches hold none.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    samples: int = 0
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a call of `fit` is going to do.

    Attributes:
        epochs: epochs to reach, counted from the run's first; `None`: no such end.
        max_steps: steps to reach, counted from the run's first; `None`: no such end.
        steps_per_epoch: as far as the data's `len` tells; `None` where it has none.
        log_every: steps in a log window.
        eval_every: steps between evaluations; `None`: at the end of each epoch.
        evaluates: whether there is data to evaluate on.
    """

    epochs: int | None
    max_steps: int | None
    steps_per_epoch: int | None
    log_every: int
    eval_every: int | None
    evaluates: bool = True

    @property
    def total_steps(self) -> int | None:
        """The step at which the run is complete; `None` where nobody knows."""
        by_epochs = (
            None
            if self.epochs is None or self.steps_per_epoch is None
            else self.epochs * self.steps_per_epoch
        )
        known = [steps for steps in (by_epochs, self.max_steps) if steps is not None]
        return min(known, default=None)


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        progress: how far the run has come.
        seconds: since `fit` was called. Callback states that are to be equal after an interruption must
            not depend on it.
        state: the training state at this moment. It may be donated to the next step: what a callback
            keeps beyond its call, it must clone.
    """

    progress: Progress
    seconds: float
    state: Any


@dataclasses.dataclass(frozen=True, slots=True)
class TrainBegin(Event):
    """A run begins, or goes on.

    Attributes:
        plan: what it is going to do.
        resumed: whether it goes on from a checkpoint; then callbacks were given back their states.
        eval_metrics: the columns of an evaluation's metrics, where they are known before the first one
            and a callback has a `monitor` that asks for it; else `None`.
    """

    plan: Plan
    resumed: bool = False
    eval_metrics: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CompileBegin(Event):
    """A step is about to be compiled: its first call may take half a minute.

    Attributes:
        what: "training step" or "evaluation step".
    """

    what: str


@dataclasses.dataclass(frozen=True, slots=True)
class CompileEnd(Event):
    """It is compiled, and has been taken once.

    Attributes:
        what: "training step" or "evaluation step".
        duration: seconds that the call took on the host; no device was waited for.
    """

    what: str
    duration: float


@dataclasses.dataclass(frozen=True, slots=True)
class EpochBegin(Event):
    """An epoch begins; one that a resumed run enters in its midst does not begin again."""


@dataclasses.dataclass(frozen=True, slots=True)
class BatchBegin(Event):
    """A batch is about to be trained on.

    Attributes:
        batch: as it goes into the step: `MicroBatches` where it is accumulated.
    """

    batch: Any


@dataclasses.dataclass(frozen=True, slots=True)
class BackwardEnd(Event):
    """Gradients are there: sent where the step's metrics hold their norms by layer.

    Forward, backward and update are one graph, so that this comes after the step.

    Attributes:
        norms: `{path: 0-d tensor}`, the metrics called `grad_norm/<path>`; on the device. Of an ensemble
            each has one number a member.
    """

    norms: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class BatchEnd(Event):
    """A step was taken.

    Attributes:
        batch: what it was trained on.
        metrics: what the step returned, on the device. To read a value is to wait for it: look at
            `WindowEnd` instead.
    """

    batch: Any
    metrics: Metrics | Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class WindowEnd(Event):
    """The last `log_every` steps were read. Values that callbacks add with `Log` join the same row.

    Attributes:
        values: the metrics over the window, as Python floats, one flat row: see `EpochResult.values`.
        steps: in the window.
        samples: in the window.
        tokens: in the window.
        duration: seconds that the window took, without evaluation and checkpoints; `None` for the first
            one after a resume, part of which another process did.
        members: of an ensemble `{name: values}`, one value a member; `{}` of a single run.
    """

    values: Mapping[str, float]
    steps: int
    samples: int
    tokens: int
    duration: float | None
    members: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluateBegin(Event):
    """An evaluation begins.

    Attributes:
        name: "" for the run's own; else what an `Evaluate` action called it.
        n_batches: as far as the data's `len` tells.
    """

    name: str = ""
    n_batches: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluateEnd(Event):
    """An evaluation is done.

    Attributes:
        result: its metrics over all of the data.
        name: "" for the run's own; else what an `Evaluate` action called it, of other weights, say.
    """

    result: EpochResult
    name: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class EpochEnd(Event):
    """An epoch is over; its evaluation, where one is due, comes right after.

    Attributes:
        result: the metrics over its batches, as they were met.
    """

    result: EpochResult


@dataclasses.dataclass(frozen=True, slots=True)
class Saved(Event):
    """A checkpoint was written, or is being written where the store works in the background.

    Attributes:
        tag: what it was asked for with: "step", "best", "interrupted", "last", ...
        path: where; `None` where the store does not say.
    """

    tag: str
    path: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Logged(Event):
    """One row for the loggers: everything that is known of a window, an evaluation or an epoch.

    Attributes:
        split: "train" (means over the last `log_every` steps), "train_epoch" (means over a whole epoch
            of training), "eval", or the name that a `Log` action gave.
        values: flat names and Python floats.
    """

    split: str
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Notice(Event):
    """Something that a person should know; a `LoopWarning` where no callback listens for it.

    Attributes:
        message: in words: a step repeated for want of memory, steps skipped, a layer whose gradient
            vanishes.
    """

    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Failure(Event):
    """The run cannot go on. It is saved if it can be, then `TrainEnd` follows.

    Attributes:
        exception: what was raised.
        where: "step", "data", "evaluate", "save" or "callback NAME".
        state: the last whole state; `None` where it is lost.
    """

    exception: BaseException
    where: str


@dataclasses.dataclass(frozen=True, slots=True)
class TrainEnd(Event):
    """The run is over, one way or another; always the last event.

    Attributes:
        result: what `fit` returns: `result.status`, `result.reason`, `result.history`, ...
    """

    result: FitResult
