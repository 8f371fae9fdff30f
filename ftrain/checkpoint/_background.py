"""Runner of functions in a background thread, whose exceptions are always reported."""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import traceback
import weakref
from collections.abc import Callable

__all__ = ["Background"]


class Background:
    """Runner of functions in a background thread, one at a time; `wait` raises their exceptions.

    At exit the process waits for the work, and an unreported failure ends it with status 1: a run
    whose last checkpoint is missing has not succeeded.
    """

    def __init__(self) -> None:
        self._job: _Job | None = None
        self._process = os.getpid()
        self._end: weakref.finalize[..., Background] | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Start `work`, after waiting for the previous function and raising its exception."""
        self.wait()
        if self._process != os.getpid():  # a forked child does not have the thread
            self._process, self._end = os.getpid(), None
        try:
            if self._end is None:
                self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
                _start_thread(self._jobs)
                self._end = weakref.finalize(self, self._jobs.put, None)
        except RuntimeError:  # no more threads can be started, or the interpreter is shutting down
            work()
            return
        job = _Job(work)
        atexit.register(self._report_at_exit)
        self._jobs.put(job)
        self._job = job

    def wait(self) -> None:
        """Wait until the running function is done; raise its exception unless it was raised before."""
        job = self._job
        if job is None:
            return
        if self._process == os.getpid():
            job.done.wait()
        self._job = None
        atexit.unregister(self._report_at_exit)
        if job.failure is not None:
            raise job.failure

    def close(self) -> None:
        """Wait for the running function and end the thread; a later `start` creates a new thread."""
        try:
            self.wait()
        finally:
            end, self._end = self._end, None
            if end is not None:
                end()

    def _report_at_exit(self) -> None:
        """Wait for the running function at exit; print its exception and exit with status 1."""
        try:
            self.wait()
        except BaseException:
            traceback.print_exc()
            # Python ignores exceptions of atexit functions: run the other functions, then exit.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


class _Job:
    """Function to run in the background thread, and its outcome."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work: Callable[[], object] | None = work
        self.done = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        # The function holds a copy of the state, which must be freed after the call.
        work, self._work = self._work, None
        assert work is not None
        try:
            work()
        except BaseException as error:
            self.failure = error
        finally:
            del work
            self.done.set()


def _start_thread(jobs: queue.SimpleQueue[_Job | None]) -> None:
    """Start the thread that runs all jobs; one per job would take 4 ms to start on a busy machine.

    The thread is a daemon, which the interpreter does not join: `Background` waits at exit for work
    that has started.
    """
    threading.Thread(target=_serve, args=(jobs,), name="ftrain-checkpoint", daemon=True).start()


def _serve(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job
