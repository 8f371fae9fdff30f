"""Early stopping of a run whose metric no longer improves."""

from __future__ import annotations

import warnings
from typing import TypedDict

from ftrain.loop.callback import Action, Stop
from ftrain.loop.callbacks._monitor import Mode, Monitor
from ftrain.loop.events import Event, LoopWarning, TrainEnd

__all__ = ["EarlyStopping", "EarlyStoppingState"]


class EarlyStoppingState(TypedDict):
    """State of `EarlyStopping`.

    Attributes:
        best: the best value so far; `None` before the first.
        best_step: the step of the best value.
        waited: number of values since the best one.
    """

    best: float | None
    best_step: int
    waited: int


class EarlyStopping:
    """Stop a run after `patience` values in a row that do not improve on the best earlier value.

    The run ends with its last weights; the store holds those of the best step if it is configured to
    keep them (`checkpoint.Store(keep_best=1)` and `Checkpointing(best=1)`).

    Args:
        patience: evaluations (for `train/...` metrics: epochs) without improvement before stopping.
        monitor: `eval/` or `train/` and the name of the metric.
        mode: "min" if smaller values are better, "max" if larger values are.
        min_delta: minimum improvement over the best value. NaN is never an improvement.

    Raises:
        ValueError: an argument is out of range; the metric does not exist.

    Example:
        >>> import torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.0))
        >>> trainer = loop.Trainer(steps, [EarlyStopping(2)], compile=False)
        >>> data = [torch.ones(4, 3)]
        >>> result = trainer.fit(steps.init_state(0), data, data, epochs=100)
        >>> print(result.status, result.reason)
        stopped early stopping: eval/loss did not improve 2 times in a row; best ... at step 1
    """

    def __init__(
        self,
        patience: int,
        *,
        monitor: str = "eval/loss",
        mode: Mode = "min",
        min_delta: float = 0.0,
    ) -> None:
        if not isinstance(patience, int) or patience < 1:
            raise ValueError(
                f"patience: expected an integer of at least 1, got {patience!r}. Write patience=5."
            )
        if not min_delta >= 0:
            raise ValueError(
                f"min_delta: expected a number of at least 0, got {min_delta!r}. Write min_delta=0.001."
            )
        self.patience, self.min_delta = patience, min_delta
        self._monitor = Monitor(monitor, mode)
        self.monitor, self.mode = monitor, mode
        self.listens = (*self._monitor.listens, TrainEnd)

    def init(self) -> EarlyStoppingState:
        """Return the initial state, before the metric has a value."""
        return {"best": None, "best_step": 0, "waited": 0}

    def __call__(
        self, state: EarlyStoppingState, event: Event
    ) -> tuple[EarlyStoppingState, tuple[Action, ...]]:
        """Compare a new value with the best; request a stop after `patience` values without progress."""
        monitor, best = self._monitor, state["best"]
        if isinstance(event, TrainEnd):
            if best is None and not state["waited"] and event.result.status == "completed":
                message = (
                    f"early stopping had no effect: expected the run to report {monitor.name!r}, got no "
                    "value. Pass eval_data, or monitor a metric of the run."
                )
                warnings.warn(message, LoopWarning, stacklevel=2)
            return state, ()
        value, step = monitor.value(event), event.progress.step
        if value is None:
            return state, ()
        if monitor.is_better(value, best, self.min_delta):
            return {"best": value, "best_step": step, "waited": 0}, ()
        waited = state["waited"] + 1
        new: EarlyStoppingState = {**state, "waited": waited}
        if waited < self.patience:
            return new, ()
        seen = (
            "all values were NaN"
            if best is None
            else f"best {best:.6g} at step {state['best_step']}"
        )
        times = "once" if waited == 1 else f"{waited} times in a row"
        return new, (Stop(f"early stopping: {monitor.name} did not improve {times}; {seen}"),)
