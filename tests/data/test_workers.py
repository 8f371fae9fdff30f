"""Test that batches do not depend on workers, and that global generators do not advance."""

from __future__ import annotations

import gc
import os
import pickle
import random as python_random
import signal
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ftrain import random
from ftrain.data import Cursor, Loader, Stream
from ftrain.loop import Trainer
from tests.data.test_loader import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

WORKERS = (0, 1, 2, 4)


class Samples:
    """A dataset that draws from all three global generators."""

    def __len__(self):
        return 37

    def __getitem__(self, index):
        noise = python_random.random() + float(np.random.rand()) + torch.rand(2)
        return {"i": index, "x": noise}


def augment(sample, key):
    return {**sample, "x": sample["x"] * random.normal(key, (2,)) + torch.rand(2)}


def loader(workers, **options):
    return Loader(
        Samples(), 4, seed=7, workers=workers, augment=augment, last_batch="pad", **options
    )


def generators():
    return (
        torch.get_rng_state().numpy().tobytes(),
        pickle.dumps(np.random.get_state()),
        python_random.getstate(),
    )


@pytest.fixture(scope="module")
def undisturbed():
    return list(loader(0).batches(epochs=3))


@pytest.mark.parametrize("before", WORKERS)
def test_loader_resumes_with_the_same_batches_for_any_number_of_workers(before, undisturbed):
    """Stopped in the middle of an epoch, with batches prefetched."""
    stop = 14  # of 30
    run = loader(before).batches(epochs=3)
    first = [next(run) for _ in range(stop)]
    run.close()
    assert_same(first, undisturbed[:stop])
    cursor = Cursor.from_json(first[-1][1].to_json())
    for after in WORKERS:
        assert_same(list(loader(after).batches(cursor, epochs=2)), undisturbed[stop:])


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_batches_do_not_depend_on_the_number_of_prefetched_batches(prefetch, undisturbed):
    assert_same(list(loader(2, prefetch=prefetch).batches(epochs=3)), undisturbed)


def test_spawned_workers_return_the_same_batches(undisturbed):
    assert_same(list(loader(1, start_method="spawn").batches(epochs=3)), undisturbed)


def test_workers_return_the_same_batches_of_arrays():
    data = {"i": torch.arange(37), "x": torch.ones(37, 2)}

    def loaded(workers):
        return list(Loader(data, 4, workers=workers, augment=noisy).batches())

    assert_same(loaded(2), loaded(0))


def noisy(sample, key):
    return {**sample, "x": sample["x"] * random.normal(key, (2,))}


def averaged(sample, key):
    return sample + random.normal(key, (100_000,)).mean()


@pytest.mark.parametrize("data", [torch.zeros(6, 1), list(torch.zeros(6, 1))])
def test_batches_do_not_depend_on_the_number_of_torch_threads(data):
    """A long sum has other bits with more threads; workers have one thread."""
    torch.set_num_threads(2)
    (averaged(torch.zeros(1), random.key(0)), torch.ones(9, 9) @ torch.ones(9, 9))  # has a pool now
    here = list(Loader(data, 2, augment=averaged).batches())
    assert torch.get_num_threads() == 2
    assert_same(list(Loader(data, 2, augment=averaged, workers=2).batches()), here)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_does_not_advance_global_generators(workers):
    before = generators()
    for _ in loader(workers).batches(epochs=2):
        assert generators() == before
    assert generators() == before


def test_batches_do_not_depend_on_draws_from_global_generators(undisturbed):
    found = []
    for item in loader(0).batches(epochs=3):
        torch.rand(3), np.random.rand(), python_random.random()
        found.append(item)
    assert_same(found, undisturbed)


def test_closing_the_batch_iterator_ends_its_workers():
    before = set(torch.multiprocessing.active_children())  # another test may still hold a loader
    run = loader(2).batches()
    next(run)
    children = set(torch.multiprocessing.active_children()) - before
    assert len(children) == 2
    run.close()
    del run
    for child in children:
        child.join(timeout=600)
    assert not any(child.is_alive() for child in children)
    assert threading.active_count() < 20


def test_an_error_in_a_worker_contains_the_index_of_the_sample():
    with pytest.raises(RuntimeError, match="while fetching sample 2 of the dataset"):
        list(Loader(Broken(range(4)), 1, shuffle=False, workers=1))


def test_an_error_in_a_worker_ends_the_workers_without_the_garbage_collector():
    before = set(torch.multiprocessing.active_children())
    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="the disk"):
            list(Loader(Broken(range(4)), 1, shuffle=False, workers=2))
        assert set(torch.multiprocessing.active_children()) <= before
    finally:
        gc.enable()


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_an_error_in_a_worker_of_a_stream_ends_the_workers(batch_size, device):
    """They once lived as long as the exception, or until the garbage collector freed its cycle."""
    before = set(torch.multiprocessing.active_children())
    source = DataLoader(Broken(range(9)), num_workers=2)
    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="the disk") as kept:
            list(Stream(source, batch_size, device=device).batches())
        assert set(torch.multiprocessing.active_children()) <= before
        assert kept.value.__traceback__ is not None
    finally:
        gc.enable()


def test_an_error_in_the_consumer_of_a_stream_ends_the_workers():
    before = set(torch.multiprocessing.active_children())
    source = DataLoader(list(range(9)), num_workers=2)

    def consume():
        for batch, _ in Stream(source).batches(epochs=2):
            if int(batch) == 4:
                raise KeyError(4)

    gc.disable()
    try:
        with pytest.raises(KeyError) as kept:
            consume()
        assert set(torch.multiprocessing.active_children()) <= before
        assert kept.value.__traceback__ is not None
    finally:
        gc.enable()


@pytest.mark.parametrize("source", ["loader", "stream"])
def test_an_error_in_a_step_of_a_run_ends_the_workers(source):
    before = set(torch.multiprocessing.active_children())
    samples = [{"x": torch.ones(2)} for _ in range(9)]
    train_data = (
        Loader(samples, 1, workers=2) if source == "loader" else DataLoader(samples, num_workers=2)
    )

    def step(state, batch):
        raise RuntimeError("the step")

    gc.disable()
    try:
        with pytest.raises(RuntimeError, match="the step") as kept:
            Trainer(step, compile=False).fit({"w": torch.ones(1)}, train_data, epochs=1)
        assert set(torch.multiprocessing.active_children()) <= before
        assert kept.value.__traceback__ is not None
    finally:
        gc.enable()


class Broken(list):
    def __getitem__(self, index):
        if index == 2:
            raise RuntimeError("the disk")
        return index


def test_an_error_that_cannot_be_pickled_is_raised_from_a_worker():
    """It was once lost on the way, and the loader waited forever."""

    class LocalError(Exception):
        def __init__(self, one, two):
            super().__init__(one, two)

    class Odd(list):
        def __getitem__(self, index):
            if index == 2:
                raise LocalError("the", "disk")
            return index

    with pytest.raises(
        RuntimeError, match="LocalError: \\('the', 'disk'\\)(.|\n)*fetching sample 2 "
    ):
        list(Loader(Odd(range(4)), 1, shuffle=False, workers=1))
    with pytest.raises(LocalError):
        list(Loader(Odd(range(4)), 1, shuffle=False))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda: 0, "batch: expected .* got function: .*pickle"),
        (
            torch.ones(1, requires_grad=True) * 2,
            r"batch: expected .* got Tensor: .*; write \.detach\(\)",
        ),
    ],
)
def test_a_batch_that_a_worker_cannot_pickle_is_refused(what, said):
    """It was once lost on the way, and the loader waited forever."""
    data = [{"x": torch.tensor(i), "odd": what} for i in range(4)]
    assert len(list(Loader(data, 2, shuffle=False, collate=list))) == 2
    with pytest.raises(TypeError, match=said):
        list(Loader(data, 2, collate=list, workers=1, start_method="fork"))


class Deadly(list):
    def __getitem__(self, index):
        if index == 5 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_worker_raises_and_the_run_resumes_from_the_last_cursor():
    whole = [batch.tolist() for batch in Loader(list(range(12)), 2, seed=3)]
    seen = []
    with pytest.raises(RuntimeError, match="exited unexpectedly|killed by signal") as raised:
        seen.extend(Loader(Deadly(range(12)), 2, seed=3, workers=2).batches())
    assert "fewer workers" in raised.value.__notes__[0]
    cursor = seen[-1][1] if seen else None
    seen += Loader(Deadly(range(12)), 2, seed=3).batches(cursor)
    assert [batch.tolist() for batch, _ in seen] == whole


def test_stream_of_a_torch_data_loader_is_reproducible_without_advancing_generators():
    """Its shuffle and the draws of its dataset are seeded by (seed, epoch, batch)."""

    def stream(workers=0):
        source = torch.utils.data.DataLoader(
            Samples(), batch_size=4, shuffle=True, num_workers=workers
        )
        return Stream(source, seed=3)

    before = generators()
    whole = list(stream().batches(epochs=2))
    assert generators() == before
    torch.rand(7)
    assert_same(list(stream().batches(epochs=2)), whole)
    assert sorted(int(i) for batch, _ in whole[:10] for i in batch["i"]) == list(range(37))
    assert whole[0][0]["i"].tolist() != whole[10][0]["i"].tolist()  # another epoch, another order
    for done in (1, 9, 10, 13):
        cursor = whole[done - 1][1]
        assert_same(list(stream().batches(cursor, epochs=2 - cursor.epoch)), whole[done:])
    with_workers = list(stream(2).batches(epochs=2))
    cursor = with_workers[4][1]
    assert_same(list(stream(2).batches(cursor, epochs=2)), with_workers[5:])


class Drawing(IterableDataset):
    """A dataset that splits itself among persistent workers and draws in them."""

    def __iter__(self):
        info = get_worker_info()
        for i in range(info.id, 13, info.num_workers):
            yield i + torch.rand(1)


@pytest.mark.parametrize("begun", [False, True])
def test_persistent_workers_draw_the_same_numbers_in_a_resumed_epoch(begun):
    """Their generators once continued from the first epoch, which a cursor does not record."""
    loader = DataLoader(Drawing(), 2, num_workers=2, persistent_workers=True)
    if begun:
        next(iter(loader))
    whole = list(Stream(loader).batches(epochs=2))
    for done in (3, len(whole) // 2, len(whole) // 2 + 2):
        cursor = whole[done - 1][1]
        rest = Stream(DataLoader(Drawing(), 2, num_workers=2, persistent_workers=True))
        assert_same(list(rest.batches(cursor, epochs=2 - cursor.epoch)), whole[done:])
