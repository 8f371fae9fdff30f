"""Clock of a run, with pauses for work between its steps."""

from __future__ import annotations

import time
from types import TracebackType

__all__ = ["Clock"]


class Clock:
    """Clock that counts the seconds since its creation, and has named stopwatches.

    Example:
        >>> clock = Clock()
        >>> with clock.paused() as pause:
        ...     pass
        >>> 0.0 <= clock.read() <= clock.total() and pause.seconds >= 0.0
        True
        >>> clock.restart("epoch"), clock.since("epoch") >= 0.0
        (None, True)
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._away = 0.0
        self._moments: dict[str, float] = {}

    def total(self) -> float:
        """Return the seconds since the clock's creation, including pauses."""
        return time.perf_counter() - self._start

    def read(self) -> float:
        """Return the seconds since the clock's creation, excluding pauses."""
        return time.perf_counter() - self._start - self._away

    def since(self, moment: str) -> float | None:
        """Return the seconds since `restart(moment)`, minus pauses; `None` if it was never called."""
        began = self._moments.get(moment)
        return None if began is None else self.read() - began

    def restart(self, moment: str) -> float | None:
        """Restart the stopwatch `moment`; return the seconds it showed, `None` at its first start."""
        before, now = self._moments.get(moment), self.read()
        self._moments[moment] = now
        return None if before is None else now - before

    def paused(self) -> Pause:
        """Return a context that pauses the clock."""
        return Pause(self)


class Pause:
    """Context in which a clock is paused; `seconds` is the length of the pause, set at its end."""

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
