"""Handling of Ctrl-C and SIGTERM: the first signal ends the run after its step, the second at once.

Read next: `run.py`, which checks for a received signal after each step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import types
from typing import Any

__all__ = ["Signals"]

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Context that records the first signal instead of raising an exception.

    Outside of the main thread, where Python allows no signal handlers, the context does nothing. A
    signal that the process already ignores stays ignored. If a run is nested in another run, a signal
    ends both.

    Attributes:
        received: number of the first signal; `None` before it.
    """

    received: int | None

    def __init__(self) -> None:
        self.received = None
        self._before: dict[int, Any] = {}
        self._owner = os.getpid()

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _HANDLED:
                before = signal.getsignal(number)
                # None: set from C, cannot be restored. SIG_IGN: ignored on purpose, as by nohup, or by
                # a shell for the background jobs of a script.
                if before is not None and before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def after_step(self, step: int) -> int | None:
        """Return the number of the signal that ends the run after this step; `None` to continue."""
        return self.received

    def _first(self) -> int | None:
        """Return the number of the first signal that this process received."""
        return self.received

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        """Handle a signal: record the first one; raise at the second one."""
        if os.getpid() != self._owner:  # a forked worker has this handler too; its parent ends it
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self._first() is not None:
            self.__exit__()
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        self._receive(number)
        again = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        said = f"finishing this step, then saving; {again} again stops at once"
        # os.write, because the handler may interrupt a print. It may fail: in
        # `ftrain train ... 2>&1 | tee log` the same Ctrl-C ends tee.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{signal.Signals(number).name}: {said}\n".encode())

    def _receive(self, number: int) -> None:
        """Record a signal, here and in the outer run if this run is nested in another."""
        self.received = number
        outer = getattr(self._before.get(number), "__self__", None)
        if isinstance(outer, Signals) and outer.received is None:
            outer._receive(number)
