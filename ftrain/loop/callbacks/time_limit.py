"""Callback that stops a run after a time limit."""

from __future__ import annotations

from ftrain.loop.callback import Action, Stop
from ftrain.loop.callbacks._format import clock
from ftrain.loop.events import BatchEnd, Event

__all__ = ["TimeLimit"]


class TimeLimit:
    """Stop a run after a given time; `resume` continues it from its last checkpoint.

    The time counts from the start of each call of `fit` and includes compilation and evaluations. Leave
    time for the current step and the last checkpoint.

    Args:
        hours: hours; added to `minutes` and `seconds`.
        minutes: minutes.
        seconds: seconds.

    Raises:
        ValueError: the limit is not more than 0.

    Example:
        >>> import torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
        >>> trainer = loop.Trainer(steps, [TimeLimit(seconds=1e-9)], compile=False)
        >>> result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)], epochs=100)
        >>> print(result.status, result.step, result.reason)
        stopped 1 time limit of 0:00
    """

    listens = (BatchEnd,)

    def __init__(self, *, hours: float = 0.0, minutes: float = 0.0, seconds: float = 0.0) -> None:
        self.seconds = 3600 * hours + 60 * minutes + seconds
        if not self.seconds > 0:
            raise ValueError(
                "TimeLimit: expected a time above 0, got 0 or less. Write TimeLimit(hours=8) or "
                "TimeLimit(minutes=90)."
            )

    @property
    def idle_until(self) -> float:
        """Value of `Event.seconds` at which the limit is reached."""
        return self.seconds

    def init(self) -> None:
        """Return `None` as the state of this callback: each call of `fit` has its own limit."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Request a stop when the time limit is reached."""
        if event.seconds < self.seconds:
            return None, ()
        return None, (Stop(f"time limit of {clock(self.seconds)}", resumable=True),)
