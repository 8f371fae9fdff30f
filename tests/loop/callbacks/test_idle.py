"""Callbacks that are idle until a time are not called for the steps before it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ftrain.loop import BatchEnd, WindowEnd
from tests.loop.runs import STEPS, train_data, trainer

N_STEPS = len(train_data())


class Counter:
    """Count the calls for `BatchEnd`; idle until a time, if one is given."""

    listens = (BatchEnd,)

    def __init__(self, name: str, idle_until: float | None = None) -> None:
        self.name, self.calls = name, 0
        if idle_until is not None:
            self.idle_until = idle_until

    def init(self) -> None:
        return None

    def __call__(self, state: None, event: Any) -> tuple[None, tuple[()]]:
        self.calls += 1
        return None, ()


@pytest.mark.parametrize(
    ("idle_until", "calls"), [(None, N_STEPS), (0.0, N_STEPS), (math.inf, 0), (3600.0, 0)]
)
def test_a_callback_is_not_called_for_steps_before_its_idle_until_time(
    idle_until: float | None, calls: int
) -> None:
    counter = Counter("counter", idle_until)
    trainer(counter).fit(STEPS.init_state(0), train_data(), epochs=1)
    assert counter.calls == calls


def test_callbacks_that_are_not_idle_are_called_for_every_step() -> None:
    idle, busy = Counter("idle", math.inf), Counter("busy")
    trainer(idle, busy).fit(STEPS.init_state(0), train_data(), epochs=1)
    assert busy.calls == N_STEPS


def test_events_generator_yields_every_step_while_callbacks_are_idle() -> None:
    events = trainer(Counter("idle", math.inf)).events(
        STEPS.init_state(0), train_data(), epochs=1, kinds=(BatchEnd,)
    )
    assert [event.progress.step for event in events] == [*range(1, N_STEPS + 1)]


class Rising:
    """Listen for `BatchEnd`; after the first call, idle until a time that has come already."""

    listens = (BatchEnd,)

    def __init__(self) -> None:
        self.idle_until, self.seconds = 0.0, [0.0]

    def init(self) -> None:
        return None

    def __call__(self, state: None, event: Any) -> tuple[None, tuple[()]]:
        self.seconds.append(event.seconds)
        self.idle_until = event.seconds + 1e-9
        return None, ()


def test_a_callback_is_called_for_steps_after_its_idle_until_time() -> None:
    rising = Rising()
    trainer(rising).fit(STEPS.init_state(0), train_data(), epochs=1)
    assert len(rising.seconds) == 1 + N_STEPS
    assert rising.seconds == sorted(rising.seconds)


class Woken(Counter):
    """Count the calls for `BatchEnd` after the first window has ended."""

    listens = (BatchEnd, WindowEnd)

    def __call__(self, state: None, event: Any) -> tuple[None, tuple[()]]:
        if isinstance(event, WindowEnd):
            self.idle_until = 0.0
            return None, ()
        return super().__call__(state, event)


def test_a_callback_that_becomes_active_at_a_window_end_is_called_for_the_next_step() -> None:
    woken = Woken("woken", math.inf)
    trainer(woken, log_every=2).fit(STEPS.init_state(0), train_data(), epochs=1)
    assert N_STEPS > 2
    assert woken.calls == N_STEPS - 2
