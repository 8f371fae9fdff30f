"""Events of a run, as immutable values that `Trainer.events` yields and callbacks receive.

    TrainBegin
      EpochBegin
        BatchBegin  [BackwardEnd]  BatchEnd  [WindowEnd]  [EvaluateBegin EvaluateEnd]  [Saved]  [Logged]
      EpochEnd  [EvaluateBegin EvaluateEnd]  [Saved]  [Logged]
    TrainEnd, after a Failure if an exception was raised

CompileBegin and CompileEnd enclose the first call of a compiled step.

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
    """Warning about a run, issued for a `Notice` if no callback listens for notices."""


class Progress(NamedTuple):
    """Progress of a run as Python numbers, which are read without waiting for the device.

    Epochs, steps and batches count from 1, here and in rows of the log, results, messages, the progress
    bar and pages. `epochs=20` runs epochs 1 to 20. Work after the last step of an epoch (its evaluation,
    its checkpoint, the end of the run) belongs to that epoch. 0 means not begun.

    Attributes:
        epoch: the current epoch, equal to the number of epochs begun.
        step: training steps taken, including steps skipped because of a non-finite gradient. The x-axis
            of every log.
        batch: steps taken in the current epoch; 0 again after the epoch's evaluation and checkpoint.
        samples: rows trained on.
        tokens: tokens trained on; 0 if the batches hold none.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    samples: int = 0
    tokens: int = 0

    def after_step(self, samples: int, tokens: int) -> Progress:
        """Return the progress after a step on a batch of this many samples and tokens."""
        epoch, step, batch, all_samples, all_tokens = self
        return Progress(epoch, step + 1, batch + 1, all_samples + samples, all_tokens + tokens)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Limits and intervals of one call of `fit`, in epochs and steps.

    Attributes:
        epochs: epochs to reach, counted from the start of the run; `None`: no limit.
        max_steps: steps to reach, counted from the start of the run; `None`: no limit.
        steps_per_epoch: steps per epoch, computed from the data's `len`; `None` if it has none.
        log_every: steps in a log window.
        eval_every: steps between evaluations; `None`: at the end of each epoch.
        evaluates: True if there is evaluation data.
        save_every: steps between checkpoints; `None`: at the end of each epoch.
        devices: devices of the training state's tensors, such as `("cuda:0",)`.
        extra_steps: in a resumed run, the steps taken so far minus those of a run that reads the same
            samples in steps of the present size; 0 unless the batch size or `accumulate` has changed.
    """

    epochs: int | None
    max_steps: int | None
    steps_per_epoch: int | None
    log_every: int
    eval_every: int | None
    evaluates: bool = True
    save_every: int | None = None
    devices: tuple[str, ...] = ()
    extra_steps: int = 0

    @property
    def total_steps(self) -> int | None:
        """Step at which the run is complete; `None` if it cannot be determined."""
        by_epochs = (
            None
            if self.epochs is None or self.steps_per_epoch is None
            else self.epochs * self.steps_per_epoch + self.extra_steps
        )
        known = [steps for steps in (by_epochs, self.max_steps) if steps is not None]
        return min(known, default=None)


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """Base class of the events of a run.

    Attributes:
        progress: the progress of the run.
        seconds: seconds since `fit` was called. A callback's state must not depend on it if it is to be
            the same in an interrupted and resumed run.
        state: the current training state. The next step may donate it: a callback must clone any tensor
            that it keeps after its call.
    """

    progress: Progress
    seconds: float
    state: Any


@dataclasses.dataclass(frozen=True, slots=True)
class TrainBegin(Event):
    """Start of a run, new or resumed.

    Attributes:
        plan: the plan of this call of `fit`.
        resumed: True if the run resumes from a checkpoint; the callbacks' states are restored then.
        eval_metrics: the columns of an evaluation's metrics, if they are known before the first
            evaluation and a callback's `monitor` names an evaluation metric; else `None`.
    """

    plan: Plan
    resumed: bool = False
    eval_metrics: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class CompileBegin(Event):
    """Start of the first call of a compiled step; the call compiles it and may take half a minute.

    Attributes:
        what: "training step" or "evaluation step".
    """

    what: str


@dataclasses.dataclass(frozen=True, slots=True)
class CompileEnd(Event):
    """End of the first call of a compiled step.

    Attributes:
        what: "training step" or "evaluation step".
        duration: seconds that the call took on the host, without waiting for the device.
    """

    what: str
    duration: float


@dataclasses.dataclass(frozen=True, slots=True)
class EpochBegin(Event):
    """Start of an epoch; not emitted when a run is resumed in the middle of an epoch."""


@dataclasses.dataclass(frozen=True, slots=True)
class BatchBegin(Event):
    """Start of a training step.

    Attributes:
        batch: the batch of the step; `MicroBatches` if several batches are accumulated.
    """

    batch: Any


@dataclasses.dataclass(frozen=True, slots=True)
class BackwardEnd(Event):
    """Gradient norms of a step; emitted if the step's metrics include the norm of each layer.

    Forward, backward and update are one graph, so this event comes after the step.

    Attributes:
        norms: `{path: 0-d tensor}`, the metrics called `grad_norm/<path>`, on the device. In an ensemble
            each tensor has one entry per member.
    """

    norms: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class BatchEnd(Event):
    """End of a training step.

    Attributes:
        batch: the batch of the step.
        metrics: the metrics that the step returned, on the device. Reading a value waits for the device;
            use `WindowEnd` to avoid that.
    """

    batch: Any
    metrics: Metrics | Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class WindowEnd(Event):
    """End of a log window (the steps of one log row), after their metrics were read.

    Values that callbacks add with `Log` join the same row.

    Attributes:
        values: the metrics over the window, as Python floats, one flat row: see `EpochResult.values`.
        steps: number of steps in the window.
        samples: number of samples in the window.
        tokens: number of tokens in the window.
        duration: seconds that the window took, without evaluation and checkpoints; `None` for a window
            that a previous process began.
        members: `{name: values}` of an ensemble, one value per member; `{}` for a single run.
    """

    values: Mapping[str, float]
    steps: int
    samples: int
    tokens: int
    duration: float | None
    members: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluateBegin(Event):
    """Start of an evaluation.

    Attributes:
        name: "" for the main evaluation; else the name given by an `Evaluate` action.
        n_batches: number of batches, from the data's `len`; `None` if it has none.
    """

    name: str = ""
    n_batches: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluateEnd(Event):
    """End of an evaluation.

    Attributes:
        result: the metrics over all of the data.
        name: "" for the main evaluation; else the name given by an `Evaluate` action, for example for
            averaged weights.
    """

    result: EpochResult
    name: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class EpochEnd(Event):
    """End of an epoch, before its evaluation if one is due.

    Attributes:
        result: the training metrics of the epoch.
    """

    result: EpochResult


@dataclasses.dataclass(frozen=True, slots=True)
class Saved(Event):
    """Event after a save: a checkpoint was written, or is being written in the background.

    Attributes:
        tag: the reason for the checkpoint: "step", "best", "interrupted", "last", ...
        path: the path of the checkpoint; `None` if the store does not provide it.
    """

    tag: str
    path: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Logged(Event):
    """Event for a new row of the log, with all values of a window, an evaluation or an epoch.

    Attributes:
        split: "train" (means over the last `log_every` steps), "train_epoch" (means over a whole epoch
            of training), "eval", or the name given by a `Log` action.
        values: flat names and Python floats.
    """

    split: str
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Notice(Event):
    """Message for the user; it becomes a `LoopWarning` if no callback listens for it.

    Attributes:
        message: the text, such as that a step was repeated after running out of memory, that steps were
            skipped, or that the gradient of a layer vanishes.
    """

    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Failure(Event):
    """Failure of a run. A checkpoint is written if the state is intact, then `TrainEnd` follows.

    Attributes:
        exception: the exception.
        where: the phase that raised it: "step", "data", "evaluate", "save" or "callback NAME".
        state: the last intact state; `None` if it is lost.
    """

    exception: BaseException
    where: str


@dataclasses.dataclass(frozen=True, slots=True)
class TrainEnd(Event):
    """End of a run, whatever its status; always the last event.

    Attributes:
        result: the result that `fit` returns: `result.status`, `result.reason`, `result.history`, ...
    """

    result: FitResult
