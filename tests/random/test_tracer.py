"""The search for a draw finds the line, and leaves the interpreter as it was."""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ftrain.core.random import _find_draw, _generators


def _settings() -> tuple[Any, ...]:
    return (
        sys.gettrace(), threading.gettrace(), sys.getprofile(), sys.getswitchinterval(),
        gc.isenabled(), _find_draw.here.search,
    )  # fmt: skip


@pytest.fixture(params=[True, False], ids=["collecting", "not collecting"])
def _own_settings(request: Any) -> Iterator[None]:
    before = _settings()
    sys.setswitchinterval(0.125)
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
    assert inside[3] >= before[3]
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
