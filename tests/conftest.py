"""Strict modes for the whole suite: an inductor cache of its own, one thread, one seed for each test.

The suite passes on every processor, so a test compares bytes only where both sides run the same kernels
on the same shapes, strides and number of threads:

- two runs of one function, eager or compiled; a state saved and loaded; a donated program and the same
  program without donation; `compile(fn, backend="eager")` and `fn`, which run the same operators;
- elementwise operators under `vmap`, integers, and copies.

It compares with a bound, relative to the norm, and says in a comment how the bound was derived or
measured:

- machine code (inductor) and eager mode: sums in another order, other approximations of exp and tanh;
- a product or a sum of one shape and of another (a batch and its rows, the whole and its parts, a
  vmapped row and a single run): MKL and oneDNN choose the order of a sum by shape and by processor;
- two implementations of one formula (torch.optim, optax, JAX), except where each operation is rounded by
  itself or is an integer.

A zero may lose its sign where a sum starts at 0.0. Time and memory are compared with a bound that holds
on a busy machine, or counted instead (calls, allocations, compiles). What only some processors can show
is skipped on the others, with the reason.

`FTRAIN_TEST_THREADS=2` runs every test with two threads. `make processors` runs the suite with two
threads, with the kernels of older processors and of Intel's, and with products that sum in an order of
their own for each shape.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

# Before torch is imported, and for the processes that tests start. Bits on the CPU depend on the number
# of threads; more than one only slows tests this small, above all where waiting threads keep a core.
THREADS = int(os.environ.get("FTRAIN_TEST_THREADS", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# `make test` runs this suite inside make: a test that calls make or pytest must not see the outer one.
for _name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"):
    os.environ.pop(_name, None)

# A shell without job control starts background processes with SIGINT ignored, and a run respects that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Those of pytest-xdist, in its workers.
_FIRST_THREADS = sys._current_frames().keys() - {threading.get_ident()}

# Before torch is imported: the cache must not be shared with another process that could clean it.
_OWN_CACHE = "TORCHINDUCTOR_CACHE_DIR" not in os.environ
if _OWN_CACHE:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="ftrain-test-inductor-")

import pytest  # noqa: E402
import torch  # noqa: E402
from _pytest.doctest import DoctestModule  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.campaign import examples  # noqa: E402

settings.register_profile(
    "ftrain", deadline=None, derandomize=True, print_blob=True, max_examples=examples(20, 100)
)
settings.load_profile("ftrain")

torch.set_num_threads(THREADS)

# pytest 9 captures loggers that do not propagate, and torch writes its structured trace (graphs, tensors
# and stacks of each compilation) as soon as the logger of that trace has a handler.
logging.getLogger("torch.__trace").propagate = True


@pytest.fixture(autouse=True)
def _fixed_threads():
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _fixed_seed():
    """The numbers of a test do not depend on the tests that ran before it in the process."""
    # `torch.manual_seed` formats a traceback for a CUDA that may be initialized later: 0.9 ms.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


def pytest_make_collect_report() -> None:
    """Nor do those drawn while its module is imported."""
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Hypothesis has one profile for a process: a module that loads another changes all tests."""
    before = settings.get_current_profile_name()
    gc.disable()  # 6 of 24 s, since all that a collection makes lives to the end
    result = yield
    gc.enable()
    gc.freeze()  # no later collection looks through modules and items, unless a run unfreezes them
    gc.set_threshold(10_000, 20, 50)  # a trace makes millions of objects
    assert settings.get_current_profile_name() == before, "a test module loads another profile"
    return result


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> Iterator[None]:
    """Search for doctests only files that have one: a search imports the file, and takes 20 ms.

    `tests/test_imports.py` imports the others.
    """
    found = yield
    if not found or b">>>" in file_path.read_bytes():
        return found
    return [one for one in found if not isinstance(one, DoctestModule)]


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch):
    """Restore the import path after each test, because spawned processes inherit it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def _frozen_objects(monkeypatch):
    """Freeze modules and items again after a test whose code unfreezes them.

    Otherwise each collection of the following tests takes a second.
    """
    unfreeze, calls = gc.unfreeze, []
    # `gc.get_freeze_count` would take 0.1 s.
    monkeypatch.setattr(gc, "unfreeze", lambda: calls.append(unfreeze()))
    yield
    if calls:
        gc.freeze()


def without_older_threads() -> Callable[[], dict[int, FrameType]]:
    """Return `sys._current_frames` without the threads, other than this, that exist now."""
    frames, older = sys._current_frames, threading.enumerate()
    this = threading.get_ident()

    def newer() -> dict[int, FrameType]:
        hidden = _FIRST_THREADS | {thread.ident for thread in older if thread.is_alive()}
        return {thread: at for thread, at in frames().items() if thread not in hidden - {this}}

    return newer


@pytest.fixture(autouse=True)
def _only_threads_of_the_test(monkeypatch):
    """Hide the threads that are older than the test: those of xdist, tqdm and inductor draw nothing.

    Beside a thread that may draw, ftrain searches for an unkeyed draw eight times, and compares
    generators at every instruction: 17 s instead of 1 s for each compiled step that is refused.
    """
    monkeypatch.setattr(sys, "_current_frames", without_older_threads())


def pytest_unconfigure() -> None:
    if _OWN_CACHE:
        shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
