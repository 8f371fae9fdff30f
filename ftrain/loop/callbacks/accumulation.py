"""Schedule of gradient accumulation: the number of batches per step, over a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ftrain.loop.callback import Accumulate, Action
from ftrain.loop.events import BatchEnd, EpochEnd, Event, TrainBegin

__all__ = ["AccumulationSchedule"]


class AccumulationSchedule:
    """Accumulate gradients over k batches in each step; k changes at given epochs or steps.

    Gradients are divided by the total weight of the k batches: the step equals one over a single batch
    that is k times as large. Each new k compiles another program.

    Args:
        schedule: `{n: k}`: k batches per step after n epochs (or steps); before that, 1.
        by: unit of the schedule, "epoch" or "step".

    Raises:
        ValueError: an entry is out of range.

    Example:
        >>> import torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
        >>> trainer = loop.Trainer(steps, [AccumulationSchedule({0: 1, 1: 2})], compile=False)
        >>> result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)] * 4, epochs=2)
        >>> [epoch.step for epoch in result.history]  # four steps, then two
        [4, 6]
    """

    def __init__(
        self, schedule: Mapping[int, int], *, by: Literal["epoch", "step"] = "epoch"
    ) -> None:
        if by not in ("epoch", "step"):
            raise ValueError(f"by: expected 'epoch' or 'step', got {by!r}. Write by='epoch'.")
        entries = {int(start): int(k) for start, k in schedule.items()}
        if not entries or any(start < 0 or k < 1 for start, k in entries.items()):
            raise ValueError(
                f"schedule: expected a dict {{{by}: batches}} with integers of at least 0 as keys and "
                f"at least 1 as values, got {dict(schedule)!r}. Write {{0: 1, 5: 4}}."
            )
        self.by, self.schedule = by, dict(sorted(entries.items()))
        self.listens = (TrainBegin, EpochEnd if by == "epoch" else BatchEnd)

    def init(self) -> None:
        """Return `None`: the run, not this callback, stores the number of batches per step."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Request a new number of batches per step when the schedule changes it."""
        now = event.progress.epoch if self.by == "epoch" else event.progress.step
        if isinstance(event, TrainBegin):
            # In a resumed run, the checkpoint holds the current k.
            return None, (() if event.resumed else (Accumulate(self.at(now)),))
        return None, ((Accumulate(self.at(now)),) if now in self.schedule else ())

    def at(self, now: int) -> int:
        """Return the number of batches per step after `now` epochs or steps.

        Example:
            >>> [AccumulationSchedule({0: 1, 5: 4}).at(done) for done in (0, 4, 5, 100)]
            [1, 1, 4, 4]
        """
        return next((k for start, k in reversed(self.schedule.items()) if start <= now), 1)
