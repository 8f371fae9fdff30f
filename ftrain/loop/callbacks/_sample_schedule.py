"""Schedule of callbacks that draw or write samples."""

from __future__ import annotations

from ftrain.loop.events import BatchEnd, EvaluateEnd, Event

__all__ = ["SampleSchedule"]


class SampleSchedule:
    """Schedule that is due every n steps or, if `every` is `None`, at each evaluation without a name.

    Attributes:
        every: number of steps n; `None`: each main evaluation (the one without a name).
        listens: the kind of event that `is_due` must be called with.
    """

    def __init__(self, every: int | None) -> None:
        if every is not None and (not isinstance(every, int) or every < 1):
            raise ValueError(
                f"every: expected a number of steps of at least 1, got {every!r}. Write every=100."
            )
        self.every = every
        self.listens: tuple[type[Event], ...] = (EvaluateEnd if every is None else BatchEnd,)

    def is_due(self, event: Event) -> bool:
        """Return True if a callback with this schedule must write its file at an event."""
        if isinstance(event, EvaluateEnd):
            return not event.name
        return self.every is not None and event.progress.step % self.every == 0
