"""The search for a draw leaves the interpreter as it was."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

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
