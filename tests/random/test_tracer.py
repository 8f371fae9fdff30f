"""The search for a draw finds the line, and leaves the interpreter as it was."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optree
import pytest
import torch

from ftrain.core.random import _find_draw, _generators, _watch


def _settings() -> tuple[Any, ...]:
    return (
        sys.gettrace(), threading.gettrace(), sys.getprofile(), sys.getswitchinterval(),
        gc.isenabled(), _find_draw.here.search,
    )  # fmt: skip


@pytest.fixture(params=[True, False], ids=["collecting", "not collecting"])
def _own_settings(request: Any) -> Iterator[None]:
    before = _settings()
    sys.setswitchinterval(0.125 if request.param else 0.001)
    threading.settrace(lambda *_: None)
    if not request.param:
        gc.disable()
    yield
    sys.setswitchinterval(before[3])
    threading.settrace(before[1])
    gc.enable()


@pytest.mark.usefixtures("_own_settings")
@pytest.mark.parametrize("raises", [False, True])
def test_search_for_the_line_of_a_draw_restores_trace_function_thread_switch_interval_and_gc(
    raises: bool,
) -> None:
    def profile(*_: Any) -> None:
        return

    tracer, outer = _find_draw._Tracer(_generators.read()), sys.gettrace()
    sys.setprofile(profile)
    try:
        before = _settings()
        try:
            with tracer.tracing():
                inside = _settings()
                if raises:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert raises
        after = _settings()
    finally:
        sys.setprofile(None)
        sys.settrace(outer)
    assert after == before
    assert inside[5] is tracer
    assert not inside[4]
    assert inside[3] == pytest.approx(max(before[3], 0.1))
    assert inside[1] != before[1]


def _in_a_thread(draw: Callable[[], None]) -> None:
    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()


def _numpy() -> None:
    torch.ones(3)
    np.random.rand()


def _python() -> None:
    torch.ones(3)
    random.random()


def _torch() -> None:
    torch.ones(3)
    torch.default_generator.manual_seed(time.perf_counter_ns())


RUNS: dict[str, Callable[[Callable[[], None]], None]] = {
    "in this thread": lambda draw: draw(),
    "in a started thread": _in_a_thread,
}
DRAWS = {"numpy": _numpy, "python": _python, "torch": _torch}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a thread"])
@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("names", [*((name,) for name in DRAWS), ("python", "torch")], ids="-".join)
def test_search_finds_the_lines_that_advance_each_generator_in_their_order(
    names: tuple[str, ...], run: Callable[[Callable[[], None]], None], beside: bool
) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    if beside:
        thread.start()
    try:
        marks = _generators.read()
        found = _find_draw.find_draws(lambda: [run(DRAWS[name]) for name in names], marks)
        _generators.restore(marks, _generators.NAMES)
    finally:
        done.set()
        if beside:
            thread.join()
    assert [draw.names for draw in found] == [(name,) for name in names]
    for name, draw in zip(names, found, strict=True):
        line = DRAWS[name].__code__.co_firstlineno + 2
        assert f"test_tracer.py:{line} in _{name}" in draw.line


@contextlib.contextmanager
def another_thread(run: Callable[[], Any] | None = None) -> Iterator[None]:
    """Run a function in a thread again and again; without one, let the thread wait."""
    done = threading.Event()

    def loop() -> None:
        while run is not None and not done.is_set():
            run()
        done.wait()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_program_is_alone_unless_another_thread_exists() -> None:
    assert _find_draw.is_alone()
    with another_thread():
        assert not _find_draw.is_alone()
    assert _find_draw.is_alone()


STATES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "numpy": (np.random.get_state, np.random.set_state),
    "python": (random.getstate, random.setstate),
    "torch": (torch.default_generator.get_state, torch.default_generator.set_state),
}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a thread"])
@pytest.mark.parametrize("name", DRAWS)
def test_search_omits_draws_that_the_call_undoes(name: str, beside: bool) -> None:
    def run() -> None:
        get, put = STATES[name]
        before = get()
        DRAWS[name]()
        DRAWS[name]()
        put(before)
        random.random()

    marks = _generators.read()
    with another_thread() if beside else contextlib.nullcontext():
        found = _find_draw.find_draws(run, marks)
    _generators.restore(marks, _generators.NAMES)
    assert [draw.names for draw in found] == [("python",)]
    assert "random.random()" in found[0].line


def test_search_names_all_generators_that_a_line_advances() -> None:
    def run() -> None:
        for _ in range(3):
            np.random.rand(), random.random()

    marks = _generators.read()
    (draw,) = _find_draw.find_draws(run, marks)
    _generators.restore(marks, _generators.NAMES)
    assert draw.names == ("numpy", "python")
    assert "in run" in draw.line


def test_search_repeats_a_call_only_if_another_thread_may_have_drawn() -> None:
    calls: list[int] = []

    def run() -> None:
        calls.append(1)
        if len(calls) == 1:
            np.random.rand()

    marks = _generators.read()
    assert len(_find_draw.find_draws(run, marks)) == 1
    assert len(calls) == 1
    calls.clear()
    with another_thread():
        assert _find_draw.find_draws(run, marks) == []
    assert len(calls) == 2
    _generators.restore(marks, _generators.NAMES)


def test_search_of_a_call_that_raises_finds_its_draws() -> None:
    def run() -> None:
        np.random.rand()
        raise ZeroDivisionError

    marks = _generators.read()
    assert [draw.names for draw in _find_draw.find_draws(run, marks)] == [("numpy",)]
    _generators.restore(marks, _generators.NAMES)


@pytest.mark.parametrize(("longest", "finds"), [(-1.0, False), (60.0, True)])
def test_search_ends_without_a_result_if_it_waits_too_long_for_other_threads(
    longest: float, finds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_find_draw, "_MAX_WAIT", longest)

    def run() -> None:
        np.random.rand()
        with _watch._operators_seen():
            torch.ones(3) + 1

    marks = _generators.read()
    assert len(_find_draw.find_draws(run, marks)) == 1  # without other threads, it does not wait
    with another_thread():
        assert len(_find_draw.find_draws(run, marks)) == finds
    _generators.restore(marks, _generators.NAMES)


def test_time_of_other_threads_is_their_processor_time() -> None:
    used: list[float] = []

    def compute() -> None:
        start = time.thread_time()
        while time.thread_time() - start < 0.05:
            pass
        used.append(time.thread_time())

    before = _find_draw._time_of_others()  # of idle threads that earlier tests have left
    with another_thread():
        assert 0 <= _find_draw._time_of_others() - before < 0.05
    with another_thread(compute):
        while len(used) < 3:
            time.sleep(0.01)
        found = _find_draw._time_of_others() - before
        at_least = used[-1]
    assert at_least * 0.9 <= found < at_least + 1.0


@pytest.mark.parametrize(
    ("function", "package", "of_torch", "may_draw"),
    [
        (torch.add, "torch", True, False),
        (torch.ones(2).add, "torch", True, False),
        (torch.Tensor._make_subclass, "torch", True, False),
        (torch.default_generator.manual_seed, "torch", False, True),
        (torch.default_generator.set_state, "torch", False, True),
        (torch.default_generator.get_state, "torch", False, False),
        (torch.default_generator.initial_seed, "torch", False, False),
        (time.sleep, "time", False, False),
        ([].append, "builtins", False, False),
        ((1).__add__, "builtins", False, False),
        (random.random, "random", False, False),
        (np.array, "numpy", False, False),
        (np.random.rand, "numpy", False, False),
        (optree._C.flatten, "optree", False, True),
    ],
    ids=lambda each: getattr(each, "__qualname__", str(each)),
)
def test_search_knows_which_functions_in_c_may_draw(
    function: Any, package: str, of_torch: bool, may_draw: bool
) -> None:
    found = _find_draw._root(function), _find_draw._is_of_torch(function)
    assert found == (package, of_torch)
    assert _find_draw._may_draw(function, sys._getframe()) == may_draw
    called: list[bool] = []  # by code of torch, which draws from torch's generators at most
    torch.nn.Identity().apply(
        lambda _: called.append(_find_draw._may_draw(function, sys._getframe(1)))
    )
    assert called == [may_draw and package == "torch"]


def test_search_reads_user_code_but_not_that_of_torch_ftrain_and_the_standard_library() -> None:
    idle = [torch.nn.functional.__file__, _find_draw.__file__, threading.__file__]
    below = [np.linalg.__file__, random.__file__]
    user = [__file__, pytest.__file__]
    names = *idle, *below, *user
    assert [_find_draw._is_idle(name) for name in names] == [True] * 3 + [False] * 4
    assert [_find_draw._is_below(name) for name in names] == [True] * 5 + [False] * 2
