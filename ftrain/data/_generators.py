"""Settings of the process while samples are read: global random generators and number of threads.

They are global, so only one thread at a time may change them.
"""

from __future__ import annotations

import os
import random as python_random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

__all__ = ["one_thread", "preserved_generators", "seed_generators"]

#: Seconds after which a waiting thread raises an error, because the reading thread may be waiting for
#: it.
LONGEST_WAIT = 120.0


def seed_generators(key: Tensor) -> None:
    """Seed the global generators of torch (CPU), numpy and Python from one key.

    A dataset that draws from them, such as torchvision's transforms, then makes the same draws for a
    sample in every worker.
    """
    high, low = key.tolist()
    seed = (high & 0xFFFFFFFF) << 32 | (low & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed & (2**63 - 1))
    python_random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the global generators of torch (CPU), numpy and Python when the `with` block ends.

    Only one thread at a time can be in such a block, so that each thread draws from its own seed.
    """
    with _alone():
        torch_state = torch.default_generator.get_state()
        numpy_state, python_state = np.random.get_state(), python_random.getstate()
        try:
            yield
        finally:
            torch.default_generator.set_state(torch_state)
            np.random.set_state(numpy_state)
            python_random.setstate(python_state)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread in a `with` block, as in worker processes, so that results are equal."""
    with _alone():
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class _Turn:
    """Lock of this process, which one thread may enter several times."""

    lock = threading.RLock()


def _renew() -> None:
    _Turn.lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)  # a child does not have the thread that holds the lock


@contextmanager
def _alone() -> Iterator[None]:
    lock = _Turn.lock
    if not lock.acquire(timeout=LONGEST_WAIT):
        raise RuntimeError(
            "dataset: expected no other thread to read samples, got another thread that has been "
            f"reading for {LONGEST_WAIT:g} s; both use the global random generators. Read the data in "
            "one thread, or write workers=1: a worker process has generators of its own."
        )
    try:
        yield
    finally:
        lock.release()
