"""Time that a run spends on data, on steps, and on everything else."""

from __future__ import annotations

from ftrain.loop.callback import Action, Log
from ftrain.loop.events import (
    BatchBegin,
    BatchEnd,
    EpochBegin,
    EpochEnd,
    EvaluateEnd,
    Event,
    Logged,
    Saved,
    TrainBegin,
    WindowEnd,
)

__all__ = ["PhaseTimes"]


class PhaseTimes:
    """Add the seconds `time/data`, `time/step` and `time/other` of a window to its row of the log.

    `data` is the wait for batches, `step` the call of the step, `other` the time between steps:
    reading metrics, callbacks, evaluation, checkpoints. On a GPU a step returns before it is done;
    the wait for it then appears where metrics are read, in `other`.

    Example:
        >>> import torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
        >>> trainer = loop.Trainer(steps, [PhaseTimes()], compile=False, log_every=2)
        >>> data = [torch.ones(4, 3)] * 2
        >>> events = trainer.events(steps.init_state(0), data, epochs=1, kinds=(loop.Logged,))
        >>> [name for name in next(events).values if name.startswith("time/")]
        ['time/data', 'time/step', 'time/other']
    """

    listens = (
        TrainBegin,
        EpochBegin,
        BatchBegin,
        BatchEnd,
        WindowEnd,
        EpochEnd,
        EvaluateEnd,
        Logged,
        Saved,
    )
    on_error = "warn"

    def __init__(self) -> None:
        self._last = 0.0
        self._spent = {"data": 0.0, "step": 0.0, "other": 0.0}

    def init(self) -> None:
        """Return `None` as the state of this callback: clock times are not saved in checkpoints."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Add the seconds since the previous event to `data`, `step` or `other`, by the event's type."""
        passed, self._last = event.seconds - self._last, event.seconds
        if isinstance(event, TrainBegin):
            self._spent = dict.fromkeys(self._spent, 0.0)
        elif isinstance(event, BatchEnd):
            self._spent["step"] += passed
        elif isinstance(event, (EpochBegin, BatchBegin)):
            self._spent["data"] += passed
        else:
            self._spent["other"] += passed
        if not isinstance(event, WindowEnd):
            return None, ()
        found = {f"time/{name}": seconds for name, seconds in self._spent.items()}
        self._spent = dict.fromkeys(self._spent, 0.0)
        return None, (Log(found),)
