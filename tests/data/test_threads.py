"""Test data sets that draw from the global generators when several threads read them."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from ftrain.data import Loader, Stream, _generators
from tests.data.test_loader import assert_same
from tests.data.test_workers import Samples, augment, generators


class Slow(Samples):
    def __getitem__(self, index: int) -> Any:
        time.sleep(0.001)  # another thread runs between the seed and the draws
        return super().__getitem__(index)


class Unbounded:
    """Iterable that draws."""

    def __iter__(self) -> Any:
        for _ in range(20):
            time.sleep(0.001)
            yield torch.rand(2)


@pytest.mark.parametrize(
    "batches",
    [
        lambda: list(Loader(Slow(), 4, seed=7).batches(epochs=2)),
        lambda: list(Loader(Slow(), 4, seed=7, augment=augment).batches(epochs=2)),
        lambda: list(Stream(Unbounded(), 4).batches(epochs=2)),
    ],
)
def test_threads_that_read_simultaneously_get_the_batches_of_a_single_thread(batches: Any) -> None:
    torch.set_num_threads(2)
    before, expected = generators(), batches()
    with ThreadPoolExecutor(3) as pool:
        found = [each.result() for each in [pool.submit(batches) for _ in range(3)]]
    for each in found:
        assert_same(each, expected)
    assert generators() == before
    assert torch.get_num_threads() == 2


def test_dataset_that_reads_another_loader_gives_the_same_batches_each_time() -> None:
    class Outer(Samples):
        def __getitem__(self, index: int) -> Any:
            (inner, *_) = Loader(Samples(), 2, seed=index)
            return {"inner": inner["x"], **super().__getitem__(index)}

    assert_same(*(list(Loader(Outer(), 4).batches()) for _ in range(2)))


def test_deadlock_of_threads_that_read_samples_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_generators, "LONGEST_WAIT", 0.1)

    class Waits(Samples):
        def __getitem__(self, index: int) -> Any:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(lambda: next(iter(Loader(Samples(), 2)))).result()

    with pytest.raises(RuntimeError, match="another thread that has been reading for 0.1 s"):
        next(iter(Loader(Waits(), 2)))


def test_forked_process_reads_while_a_thread_of_its_parent_reads() -> None:
    entered, done = threading.Event(), threading.Event()

    class Holds(Samples):
        def __getitem__(self, index: int) -> Any:
            entered.set()
            done.wait(60)
            return super().__getitem__(index)

    thread = threading.Thread(target=lambda: next(iter(Loader(Holds(), 2))))
    thread.start()
    try:
        assert entered.wait(60)
        child = os.fork()
        if not child:
            os._exit(len(next(iter(Loader(Samples(), 2)))["x"]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    finally:
        done.set()
        thread.join()
