"""The time that a run takes, with and without what interrupts its steps."""

from __future__ import annotations

import time
from types import TracebackType

__all__ = ["Clock"]


class Clock:
    """Seconds since it was made.

    Example:
        >>> clock = Clock()
        >>> with clock.paused() as pause:
        ...     pass
        >>> 0.0 <= clock.read() <= clock.total() and pause.seconds >= 0.0
        True
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._away = 0.0

    def total(self) -> float:
        """All of them."""
        return time.perf_counter() - self._start

    def read(self) -> float:
        """Those in which it was not paused."""
        return time.perf_counter() - self._start - self._away

    def paused(self) -> Pause:
        """A context whose seconds do not count."""
        return Pause(self)


class Pause:
    """A stretch of time; `seconds` long once it is over."""

    seconds = 0.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __enter__(self) -> Pause:
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self._clock._away += self.seconds
