"""Strict modes for the whole suite: an inductor cache of its own, one thread, no surprises."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

# Before torch is imported: the cache must not be shared with another process that could clean it.
_OWN_CACHE = "TORCHINDUCTOR_CACHE_DIR" not in os.environ
if _OWN_CACHE:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="ftrain-test-inductor-")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("ftrain", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ftrain")


@pytest.fixture(autouse=True)
def _one_thread():
    """Bits on the CPU depend on the number of threads; more than one only slows tests this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch):
    """What a test adds to the import path goes with it: spawned processes inherit the path."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def pytest_unconfigure() -> None:
    if _OWN_CACHE:
        shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
