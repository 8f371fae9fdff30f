"""Test that a signal saves and ends a run, nested runs included, and that handlers are restored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from ftrain import checkpoint
from ftrain.loop import BatchEnd
from tests import preloaded
from tests.loop.runs import STEPS, fit, train_data, trainer


class Kills:
    """A callback that sends a signal to its own process after a step."""

    listens = (BatchEnd,)

    def __init__(self, number: signal.Signals, step: int = 2) -> None:
        self.number, self.step = number, step

    def init(self) -> None:
        return None

    def __call__(self, state: None, event: Any) -> tuple[None, tuple[()]]:
        if event.progress.step == self.step:
            os.kill(os.getpid(), self.number)
        return None, ()


class Nested:
    """A callback that trains another run after each step, and collects its results."""

    listens = (BatchEnd,)

    def __init__(self, *callbacks: Any) -> None:
        self.callbacks, self.results = callbacks, list[Any]()

    def init(self) -> None:
        return None

    def __call__(self, state: None, event: Any) -> tuple[None, tuple[()]]:
        if event.progress.step > 1:
            self.results.append(fit(trainer(*self.callbacks), max_steps=4))
        return None, ()


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_that_the_process_ignores_does_not_end_the_run(number: signal.Signals) -> None:
    """A shell ignores signals after `trap '' INT`, and SIGINT in the background jobs of a script."""
    signal.signal(number, signal.SIG_IGN)
    assert fit(trainer(Kills(number)), max_steps=4).status == "completed"
    assert signal.getsignal(number) is signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_a_nested_run_ends_both_runs(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    nested = Nested(Kills(number))
    outer = fit(trainer(nested), max_steps=6)
    assert [result.status for result in nested.results] == ["interrupted"]
    assert (outer.status, outer.step, outer.signal) == ("interrupted", 2, number)
    assert signal.getsignal(number) is before


def test_signal_in_the_innermost_of_three_nested_runs_ends_all_three() -> None:
    inner = Nested(Kills(signal.SIGINT))
    middle = Nested(inner)
    outer = fit(trainer(middle), max_steps=6)
    found = [*inner.results, *middle.results, outer]
    assert [(result.status, result.step) for result in found] == [("interrupted", 2)] * 3


def test_second_signal_in_a_nested_run_raises_at_once() -> None:
    nested = Nested(Kills(signal.SIGINT), Kills(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(trainer(nested), max_steps=6)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


PROGRAM = """
    import os, signal, sys
    sys.path.insert(0, {root!r})
    from ftrain.loop import BatchEnd
    from tests.loop.runs import Counts, fit, trainer
    class Slow:
        listens = (BatchEnd,)
        def init(self): return None
        def __call__(self, state, event):
            if event.progress.step == 2:
                for _ in range({times}):
                    os.kill(os.getpid(), signal.{name})
            return state, ()
    result = fit(trainer(Slow(), store={store!r}), epochs=2)
    sys.exit(result.exit_code)
"""


@pytest.mark.parametrize(
    ("name", "times", "code"),
    [("SIGTERM", 1, 143), ("SIGINT", 2, 130)],  # tests/cli/test_processes.py sends SIGINT once
)
def test_a_signal_saves_the_run_and_sets_the_exit_code(
    name: str, times: int, code: int, tmp_path: Any
) -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = textwrap.dedent(
        PROGRAM.format(root=root, times=times, name=name, store=str(tmp_path))
    )
    done = preloaded.run("-c", program, check=False)
    assert done.returncode in (code, -getattr(signal, name)), done.stderr
    assert "finishing this step, then saving" in done.stderr
    steps_saved = checkpoint.Store(tmp_path).steps()
    assert steps_saved == ([2] if times == 1 else [])


def test_a_signal_ends_the_run_when_stderr_is_closed(tmp_path: Any) -> None:
    """In `python run.py 2>&1 | tee log`, the same Ctrl-C ends tee first."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = textwrap.dedent(
        PROGRAM.format(root=root, times=1, name="SIGINT", store=str(tmp_path / "store"))
    )
    reading, writing = os.pipe()
    os.close(reading)
    log = (tmp_path / "log").open("w")
    done = subprocess.run([sys.executable, "-c", program], stdout=log, stderr=writing, check=False)
    os.close(writing)
    assert done.returncode == 130
    assert checkpoint.Store(tmp_path / "store").steps() == [2]


def test_signal_handlers_are_restored_after_a_run() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fit(trainer(), max_steps=1)
    events = trainer().events(STEPS.init_state(0), train_data(), epochs=1)
    next(events)
    events.close()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_fit_in_a_thread_installs_no_signal_handlers() -> None:
    import threading

    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(fit(trainer(), max_steps=2)))
    thread.start()
    thread.join()
    assert found[0].status == "completed"
