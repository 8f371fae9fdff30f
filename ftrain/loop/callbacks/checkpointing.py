"""Callback that requests checkpoints in addition to those that `save_every` schedules."""

from __future__ import annotations

from typing import Any, TypedDict

from ftrain.loop.callback import Action, Save
from ftrain.loop.callbacks._monitor import Mode, Monitor
from ftrain.loop.events import BatchEnd, Event, TrainBegin

__all__ = ["Checkpointing", "CheckpointingState"]


class CheckpointingState(TypedDict):
    """State of `Checkpointing`: the best values so far.

    Attributes:
        best: the k best values, best first.
    """

    best: list[float]


class Checkpointing:
    """Request a checkpoint every n steps or minutes, and when a metric's value is one of the k best.

    The trainer writes the checkpoints to its store, which decides how long each is kept. To keep the
    best three by accuracy, configure both:

        store = checkpoint.Store(folder, keep_best=3, metric="eval/accuracy", mode="max")
        Checkpointing(best=3, monitor="eval/accuracy", mode="max")

    Args:
        every: steps between two checkpoints.
        minutes: minutes of training between two checkpoints. Saving does not change the training state.
        best: number of best values for which a checkpoint is requested.
        monitor: `eval/` or `train/` and the name of the metric; its value is passed to the store under
            this name and under the metric's name (`"loss"` for `"eval/loss"`).
        mode: "min" if smaller values are better, "max" if larger values are.

    Raises:
        ValueError: an argument is out of range; none of `every`, `minutes` and `best` is given; the
            metric does not exist.

    Example:
        >>> import tempfile, torch, ftrain
        >>> from ftrain import checkpoint, loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(1.0))
        >>> store = checkpoint.Store(tempfile.mkdtemp(), keep_last=1, keep_best=1, mode="max")
        >>> best = Checkpointing(best=1, mode="max")
        >>> trainer = loop.Trainer(steps, [best], compile=False, store=store)
        >>> result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)], [torch.ones(4, 3)], epochs=3)
        >>> store.best().name, store.steps()  # the loss only falls
        ('step-000000000001', [1, 3])
    """

    def __init__(
        self,
        *,
        every: int | None = None,
        minutes: float | None = None,
        best: int = 0,
        monitor: str = "eval/loss",
        mode: Mode = "min",
    ) -> None:
        for name, value in (("every", every), ("minutes", minutes)):
            if value is not None and not value > 0:
                raise ValueError(
                    f"{name}: expected a number above 0, got {value!r}. Write {name}=1."
                )
        if best < 0 or (every is None and minutes is None and not best):
            raise ValueError(
                "Checkpointing: expected at least one of every, minutes and best, got no value. Write "
                "Checkpointing(every=1000), Checkpointing(minutes=15) or Checkpointing(best=1)."
            )
        self.every, self.minutes, self.best = every, minutes, best
        self._monitor = Monitor(monitor, mode)
        self.monitor, self.mode = (monitor if best else None), mode
        self._saved = 0.0  # seconds since `fit` was called; not part of the saved state
        by_step = every is not None or minutes is not None
        self.listens: tuple[type[Event], ...] = (TrainBegin, BatchEnd) if by_step else ()
        self.listens += self._monitor.listens if best else ()

    def init(self) -> CheckpointingState:
        """Return the initial state, before the monitored metric has a value."""
        return {"best": []}

    def __call__(
        self, state: CheckpointingState, event: Event
    ) -> tuple[CheckpointingState, tuple[Action, ...]]:
        """Request a checkpoint if one is due at this event."""
        if isinstance(event, BatchEnd):
            if self.every is not None and event.progress.step % self.every == 0:
                return state, (Save("step"),)
            if self.minutes is not None and event.seconds - self._saved >= 60 * self.minutes:
                self._saved = event.seconds
                return state, (Save("time"),)
            return state, ()
        if isinstance(event, TrainBegin):
            self._saved = event.seconds
        return self._compare(state, self._monitor.value(event) if self.best else None)

    def _compare(
        self, state: CheckpointingState, value: float | None
    ) -> tuple[CheckpointingState, tuple[Action, ...]]:
        monitor, best = self._monitor, state["best"]
        full = len(best) >= self.best
        if value is None or not monitor.is_better(value, best[-1] if full else None):
            return state, ()
        ranked = sorted([*best, value], reverse=monitor.mode == "max")[: self.best]
        metrics: dict[str, Any] = {monitor.name: value, monitor.metric: value}
        return {"best": ranked}, (Save("best", metrics),)
