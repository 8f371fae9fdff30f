"""Test that ignored signals stay ignored, and that a signal ends a nested run and its outer run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ftrain.loop import BatchEnd
from tests.loop.runs import fit, trainer


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
