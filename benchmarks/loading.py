"""Cost of loading a batch, and of shuffling the order of a billion samples.

    python -m benchmarks.loading

The rivals are indexing by a stored permutation, and torch's DataLoader.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import ftrain
from benchmarks.measure import Report, arguments, die_unless, take_turns
from ftrain import data

BATCH = 64
MANY = 10**9


def run(quick: bool = False) -> Report:
    torch.set_num_threads(1)  # a second thread gains nothing on 64 small images
    report = Report("loading", "Batches of the digits, and the order of a billion samples")
    rounds, seconds = (2, 0.0) if quick else (21, 0.2)
    digits = data.digits()
    images, labels = digits["image"], digits["label"]

    def by_hand() -> Iterator[Any]:
        while True:
            order = torch.randperm(len(labels))
            for rows in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
                yield {"image": images[rows], "label": labels[rows]}

    def from_torch() -> Iterator[Any]:
        dataset = torch.utils.data.TensorDataset(images, labels)
        loader = torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, drop_last=True)
        while True:
            yield from loader

    def noisy(sample: Any, key: torch.Tensor) -> Any:
        noise = ftrain.random.normal(key, sample["image"].shape)
        return {**sample, "image": sample["image"] + 0.1 * noise}

    loader = data.Loader(digits, BATCH)
    augmented = data.Loader(digits, BATCH, augment=noisy)
    contenders = {
        "ftrain: Loader": drawing(loader.batches(epochs=None)),
        "ftrain: Loader, every sample augmented": drawing(augmented.batches(epochs=None)),
        "by hand: randperm and indexing": drawing(by_hand()),
        "torch: DataLoader over a TensorDataset": drawing(from_torch()),
    }
    turns = take_turns(contenders, rounds=rounds, seconds=seconds)
    report.section(f"A batch of {BATCH} digits in memory, in")
    report.turns("digits", turns, "us")
    ours = turns.median("ftrain: Loader") * 1e6
    report.target("digits: microseconds a batch", ours, "at most", 30)
    ratio = turns.ratio("ftrain: Loader", "torch: DataLoader over a TensorDataset")
    report.target("digits: time over torch's DataLoader", ratio, "at most", 1)

    order = data.Shuffled(MANY)
    places = itertools.count(123_456_789, 256)

    def far_inside() -> np.ndarray:
        start = next(places)
        return order.at(np.arange(start, start + 256), seed=0, epoch=0)

    cursor = data.Loader(Numbers(), BATCH).at(10**6)

    def resumed() -> Any:
        return next(data.Loader(Numbers(), BATCH).batches(cursor))

    found = far_inside()
    die_unless(
        len(np.unique(found)) == 256 and found.max() < MANY, "the order is not a permutation"
    )
    turns = take_turns(
        {"256 places of the order": far_inside, "first batch of a loader resumed at 10^6": resumed},
        rounds=rounds,
        seconds=seconds,
    )
    report.section("Of a billion samples, in")
    report.turns("a billion", turns)
    ours = turns.median("256 places of the order") * 1e3
    report.target("a billion: milliseconds for 256 places", ours, "at most", 0.3)
    return report


class Numbers:
    """Dataset of a billion computed samples, which takes no memory."""

    def __len__(self) -> int:
        return MANY

    def gather(self, indices: torch.Tensor) -> torch.Tensor:
        return indices


def drawing(batches: Iterator[Any]) -> Callable[[], Any]:
    return lambda: next(batches)


if __name__ == "__main__":
    options = arguments(__doc__)
    finished = run(options.quick)
    if not options.no_save:
        finished.save()
