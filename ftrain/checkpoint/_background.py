"""One piece of work beside the loop, whose failure cannot go unnoticed."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable

__all__ = ["Background"]


class Background:
    """Runs one function at a time in a thread; what it raises comes out of the next `wait`.

    At the end of the process the thread is waited for, and a failure that nobody was told of ends the
    process with status 1: a run whose last checkpoint is missing has not succeeded.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        # Not Thread.join: interrupted by Ctrl-C, it takes the thread for dead ever after (CPython 3.11).
        self._done = threading.Event()
        self._process = os.getpid()
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin; waits for the one before, and raises what that raised."""
        self.wait()

        begin = threading.Lock()

        def run() -> None:
            with begin:
                pass
            try:
                work()
            except BaseException as error:
                self._failure = error
            finally:
                done.set()

        done = self._done = threading.Event()
        self._process = os.getpid()
        # Not a daemon: the interpreter waits for it.
        thread = self._thread = threading.Thread(target=run, name="ftrain-checkpoint")
        atexit.register(self._report_at_exit)
        # A new thread keeps the interpreter for 5 ms (`sys.getswitchinterval`) before its maker gets it
        # back: it has to wait for us first.
        with begin:
            try:
                thread.start()
                return
            except (
                RuntimeError
            ):  # there are no more threads to be had, or no more at this late hour
                self._thread = None
                atexit.unregister(self._report_at_exit)
        work()

    def wait(self) -> None:
        """Until the work is done; raises what it raised, once."""
        thread = self._thread
        if thread is None:
            return
        if self._process == os.getpid():  # in a forked child there is no such thread
            self._done.wait()
            thread.join()
        self._thread = None
        atexit.unregister(self._report_at_exit)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _report_at_exit(self) -> None:
        try:
            self.wait()
        except BaseException:
            traceback.print_exc()
            # What atexit functions raise is printed and forgotten. Run the others, then say it.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
