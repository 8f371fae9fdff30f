"""Test that batches do not depend on what a source has drawn before, from generators of its own."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
)

from ftrain import data


class Draws(IterableDataset):
    """Noise from a generator of its own."""

    def __init__(self, generator):
        self.transforms = [{"rng": generator}]

    def draw(self):
        generator = self.transforms[0]["rng"]
        if isinstance(generator, torch.Generator):
            return float(torch.rand((), generator=generator))
        return float(generator.random() if hasattr(generator, "random") else generator.rand())

    def __iter__(self):
        return iter([torch.tensor(self.draw()) for _ in range(6)])


class Items(Dataset):
    """The same with a length, each sample drawn when it is read."""

    def __init__(self, generator):
        self.noise = Draws(generator)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.tensor(index + self.noise.draw())


class ByEpoch(BatchSampler):
    """Sampler of batches whose order depends on the epoch, as those of distributed loops."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        return iter([order[:3], order[3:]])


GENERATORS = {
    "numpy": lambda: np.random.default_rng(0),
    "philox": lambda: np.random.Generator(np.random.Philox(0)),
    "numpy's old one": lambda: np.random.RandomState(0),
    "python": lambda: random.Random(0),
    "torch": lambda: torch.Generator().manual_seed(0),
}


def batches_by(order):
    return DataLoader(torch.arange(6), batch_sampler=order)


SOURCES = {
    **{f"stream, {name}": lambda g=g: Draws(g()) for name, g in GENERATORS.items()},
    "batch sampler": lambda: batches_by(
        BatchSampler(RandomSampler(range(6), generator=torch.Generator()), 2, drop_last=False)
    ),
    "batch sampler by epoch": lambda: batches_by(ByEpoch(range(6), 3, drop_last=False)),
    "loader of items": lambda: DataLoader(Items(np.random.default_rng(0)), batch_size=2),
    "loader of a subset": lambda: DataLoader(
        Subset(Items(random.Random(0)), range(5)), batch_size=2
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_stream_resumes_exactly_whatever_random_numbers_its_source_drew(name):
    source = SOURCES[name]()
    whole = list(data.Stream(source, seed=3).batches(epochs=3))
    again = list(data.Stream(source, seed=3).batches(epochs=3))
    assert [b.tolist() for b, _ in again] == [b.tolist() for b, _ in whole]
    assert whole[0][0].tolist() != whole[len(whole) // 3][0].tolist()
    for place, (_, cursor) in enumerate(whole[:-1]):
        resumed = data.Stream(SOURCES[name](), seed=3).batches(cursor, epochs=None)
        assert next(resumed)[0].tolist() == whole[place + 1][0].tolist(), place


@pytest.mark.parametrize("name", GENERATORS)
def test_a_loader_reads_the_same_samples_from_any_cursor_whatever_numbers_the_dataset_drew(name):
    loader = data.Loader(Items(GENERATORS[name]()), batch_size=2, seed=3)
    whole = list(loader.batches(epochs=2))
    assert [b.tolist() for b, _ in loader.batches(epochs=2)] == [b.tolist() for b, _ in whole]
    for place, (_, cursor) in enumerate(whole[:-1]):
        fresh = data.Loader(Items(GENERATORS[name]()), batch_size=2, seed=3)
        assert next(fresh.batches(cursor))[0].tolist() == whole[place + 1][0].tolist(), place


def test_workers_and_one_process_read_the_same_samples_from_a_dataset_with_a_generator():
    loaders = [
        data.Loader(Items(np.random.default_rng(0)), batch_size=2, seed=3, workers=workers)
        for workers in (0, 2)
    ]
    alone, shared = ([b.tolist() for b, _ in loader.batches(epochs=1)] for loader in loaders)
    assert alone == shared
