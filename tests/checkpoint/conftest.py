"""Provide directories for tests that save thousands of times."""

from __future__ import annotations

import itertools
import os
import pathlib
import tempfile

import pytest

collect_ignore = ["by_hand.py"]  # a script, which would train if pytest imported it for doctests


@pytest.fixture
def memory_path(tmp_path):
    """Provide a directory in memory if possible, where syncing is free."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ftrain-test-") as name:
        yield pathlib.Path(name)


@pytest.fixture(scope="module")
def memory_path_factory(tmp_path_factory):
    """Provide a function that returns a new path in memory at each call, for Hypothesis."""
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared, prefix="ftrain-test-") as name:
        counter = itertools.count()
        yield lambda: pathlib.Path(name) / str(next(counter))
