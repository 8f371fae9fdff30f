"""Test what `conftest.py` sets up for every test."""

from __future__ import annotations

import gc
import threading

import pytest

from ftrain.core.random._find_draw import is_alone
from tests import conftest


def test_only_threads_that_a_test_started_count_as_other_running_threads() -> None:
    """A worker of pytest-xdist has a thread of its own."""
    assert is_alone()
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert not is_alone()
    done.set()
    thread.join()
    assert is_alone()


def test_thread_started_by_a_test_is_not_the_only_running_thread() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(is_alone()))
    thread.start()
    thread.join()
    assert found == [False]


def test_threads_left_by_an_earlier_test_do_not_count_as_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert not is_alone()
    monkeypatch.setattr("sys._current_frames", conftest.without_older_threads())
    assert is_alone()
    done.set()
    thread.join()


def test_test_can_unfreeze_the_objects_that_pytest_froze_for_the_garbage_collector() -> None:
    gc.unfreeze()
    assert gc.get_freeze_count() == 0


def test_objects_that_an_earlier_test_unfroze_are_frozen_for_the_next_test() -> None:
    assert gc.get_freeze_count() > 100_000
