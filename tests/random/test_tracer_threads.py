"""The search for a draw tells the draws of its call from those of the program's other threads.

Another thread draws at a moment that no test can choose. Here the test draws instead, between two events
that it reports to the tracer.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optree
import pytest
import torch

from ftrain.core.random import _find_draw, _generators

THREADS = pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a thread"])


@pytest.fixture(autouse=True)
def _kept_generators() -> Iterator[None]:
    marks = _generators.read()
    yield
    _generators.restore(marks, _generators.NAMES)


@contextlib.contextmanager
def tracer_of(beside: bool) -> Iterator[_find_draw._Tracer]:
    """Yield a tracer at a line of user code, in a program with or without another thread."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    if beside:
        thread.start()
    try:
        tracer = _find_draw._Tracer(_generators.read())
        tracer._here.at = sys._getframe(), 1
        yield tracer
    finally:
        done.set()
        if beside:
            thread.join()


def finds(tracer: _find_draw._Tracer, report: Callable[[], object]) -> bool:
    """Draw, report an event, and return True if the search takes the draw for one of the call."""
    np.random.rand()
    report()
    tracer._compare()
    return bool(tracer.draws())


@pytest.mark.parametrize("event", ["begin_operator", "end_operator"])
@pytest.mark.parametrize("case", ["alone", "beside a thread", "with a thread of the call"])
def test_draws_during_an_operator_are_ignored_if_only_another_thread_can_have_made_them(
    case: str, event: str
) -> None:
    with tracer_of(beside=case != "alone") as tracer:
        if case == "with a thread of the call":
            own = lambda: tracer._trace(sys._getframe(), "line", None)  # noqa: E731
            thread = threading.Thread(target=own)
            thread.start()
            thread.join()
        tracer._here.returned.append(sys._getframe())
        np.random.rand()
        getattr(tracer, event)()
        assert bool(tracer._here.returned) == (case != "beside a thread")
        tracer._compare()
    assert bool(tracer.draws()) == (case != "beside a thread")


@pytest.mark.parametrize(
    ("waited", "used", "ends"), [(6.0, 6.0, True), (4.0, 6.0, False), (6.0, 4.0, False)]
)
def test_search_ends_once_it_has_waited_and_other_threads_have_computed_for_5_seconds(
    waited: float, used: float, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"clock": 70.0, "own": 20.0, "others": 30.0}
    monkeypatch.setattr(_find_draw, "_time_of_others", lambda: now["others"])
    clocks = {"perf_counter": lambda: now["clock"], "thread_time": lambda: now["own"]}
    monkeypatch.setattr(_find_draw, "time", types.SimpleNamespace(**clocks))
    with tracer_of(beside=True) as tracer:
        now["clock"] += 10 + waited
        now["own"] += 10
        now["others"] += used
        with pytest.raises(_find_draw._Waited) if ends else contextlib.nullcontext():
            tracer.begin_operator()


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("may_draw", [False, True])
def test_draw_before_a_line_counts_only_if_code_that_may_draw_has_run(
    below: bool, may_draw: bool
) -> None:
    with tracer_of(beside=True) as tracer:
        tracer._here.below, tracer._here.may_draw = below, may_draw
        found = finds(tracer, lambda: tracer._trace(sys._getframe(), "line", None))
    assert found == (may_draw and not below)


@THREADS
def test_tracer_watches_instructions_only_beside_another_thread(beside: bool) -> None:
    code, frame = (lambda: len(())).__code__, sys._getframe()
    with tracer_of(beside) as tracer:
        found = {}
        for event in ("line", "return"):
            tracer._trace(frame, event, None)
            found[event] = tracer._here.may_draw
        traces = frame.f_trace_opcodes
        frame.f_trace_opcodes = False
        for each in dis.get_instructions(code):
            tracer._trace(types.SimpleNamespace(f_code=code, f_lasti=each.offset), "opcode", None)
            found[each.opname] = tracer._here.may_draw
    assert traces == beside
    assert found["line"] != beside
    assert found["return"]
    assert found["CALL"]
    assert not found["LOAD_GLOBAL"]


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("in_torch", [False, True])
@pytest.mark.parametrize("event", ["c_call", "call", "return"])
def test_draw_before_a_call_counts_unless_code_of_torch_has_run(
    event: str, in_torch: bool, below: bool
) -> None:
    with tracer_of(beside=True) as tracer:
        tracer._here.below, tracer._here.in_torch = below, in_torch
        found = finds(tracer, lambda: tracer._profile(sys._getframe(), event, len))
        assert tracer._here.calls == ([in_torch] if event == "c_call" else [])
    assert found == (not below and not (in_torch and event == "c_call"))


@pytest.mark.parametrize("event", ["c_return", "c_exception"])
@pytest.mark.parametrize(
    ("function", "in_torch", "below", "expected"),
    [
        (len, False, False, True),
        (len, True, False, False),
        (len, False, True, False),
        (optree._C.flatten, False, True, True),
        (threading.get_ident, False, False, False),
    ],
    ids=["other", "in torch", "below", "below, of another library", "waits"],
)
def test_draw_during_a_call_counts_unless_other_threads_run_in_it(
    function: Any, in_torch: bool, below: bool, expected: bool, event: str
) -> None:
    with tracer_of(beside=True) as tracer:
        here = tracer._here
        here.below, here.in_torch, here.calls = below, in_torch, [True]
        assert finds(tracer, lambda: tracer._profile(sys._getframe(), event, function)) == expected
        assert here.in_torch
        assert here.calls == []
        tracer._profile(sys._getframe(), event, function)  # of a call that began before the search


@THREADS
def test_code_after_a_call_draws_nothing_unless_the_call_is_part_of_another(beside: bool) -> None:
    with tracer_of(beside) as tracer:
        tracer._here.calls = [False, False]
        found = []
        for _ in range(2):
            tracer._profile(sys._getframe(), "c_return", len)
            found.append(tracer._here.may_draw)
    assert found == [True, not beside]


@THREADS
def test_frames_are_kept_until_generators_are_compared_if_there_is_another_thread(
    beside: bool,
) -> None:
    """Freeing a tensor lets other threads run, whose draws would count as those of the next line."""
    frame = sys._getframe()
    with tracer_of(beside) as tracer:
        tracer._profile(frame, "call", None)
        assert tracer._here.returned == []
        tracer._profile(frame, "return", None)
        assert tracer._here.returned == [frame] * beside
        tracer._compare()
        assert tracer._here.returned == []


def test_tracer_knows_whether_the_running_frame_is_code_of_torch_or_ftrain() -> None:
    frames = []
    torch.nn.Identity().apply(lambda _: frames.append(sys._getframe()))
    (user,) = frames
    torchs = user.f_back
    with tracer_of(beside=True) as tracer:
        found = []
        for frame, event in [
            (user, "call"),
            (user, "return"),
            (torchs, "call"),
            (torchs, "return"),
        ]:
            tracer._profile(frame, event, None)
            found.append(tracer._here.below)
    assert found == [False, True, True, False]


@THREADS
@pytest.mark.parametrize("may_be_torch", [False, True])
def test_change_of_torchs_generator_counts_only_after_a_call_that_may_draw_from_it(
    may_be_torch: bool, beside: bool
) -> None:
    with tracer_of(beside) as tracer:
        torch.rand(1)
        tracer._compare(may_be_torch)
    assert [draw.names for draw in tracer.draws()] == [("torch",)] * (may_be_torch or not beside)


def test_change_of_torchs_generator_before_a_call_that_may_draw_from_it_is_ignored() -> None:
    seed = torch.default_generator.manual_seed
    for function, expected in ((seed, ()), (len, ("torch",))):
        with tracer_of(beside=True) as tracer:
            torch.rand(1)
            tracer._profile(sys._getframe(), "c_call", function)
            assert _generators.moved(tracer._last) == expected


def test_place_of_a_draw_is_the_innermost_user_code_inside_the_searched_call() -> None:
    places: list[Any] = []
    note = lambda _: places.append(_find_draw._place(sys._getframe(1)))  # noqa: E731
    torch.nn.Identity().apply(note)
    frame, line = places.pop()
    assert (frame, line) == (sys._getframe(), sys._getframe().f_lineno - 2)
    _find_draw._search(functools.partial(torch.nn.Identity().apply, note), _generators.read())
    assert places == [None]
