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

    Outside of the main thread, where Python allows no signal handlers, it does nothing.

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
                if before is not None:  # None: set from C, cannot be restored
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if os.getpid() != self._owner:  # a forked worker, which its parent ends
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.received is not None:
            self.__exit__()
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        self.received = number
        again = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        said = f"finishing this step, then saving; {again} again stops at once"
        # os.write, because the handler may interrupt a print. It may fail: in
        # `ftrain train ... 2>&1 | tee log` the same Ctrl-C ends tee.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{signal.Signals(number).name}: {said}\n".encode())
