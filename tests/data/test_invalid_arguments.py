"""Test that loaders, splits and concatenations refuse invalid arguments by name."""

from __future__ import annotations

import pytest
import torch

from ftrain.data import Cursor, Loader, Shuffled, Windows, concat, split
from tests.data.test_loader import DATA, ROWS, OnlyIterable


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Loader(OnlyIterable(), 2), TypeError, "data.Stream"),
        (lambda: Loader(3, 2), TypeError, "dataset: expected a tree of tensors or arrays"),
        (lambda: Loader({}, 2), ValueError, "expected at least one tensor"),
        (lambda: Loader([], 2), ValueError, "empty"),
        (
            lambda: Loader({"x": ROWS, "y": ROWS[1:]}, 2),
            ValueError,
            r"\['y'\]: expected 53 rows, .* got 52",
        ),
        (
            lambda: Loader({"x": ROWS, "y": "labels"}, 2),
            TypeError,
            r"dataset\['y'\]: expected a tensor",
        ),
        (lambda: Loader({"train": Windows(ROWS, 2)}, 2), TypeError, "choose a split"),
        (lambda: Loader({"x": torch.tensor(1)}, 2), ValueError, "got a 0-d tensor"),
        (lambda: Loader(DATA, 0), ValueError, "batch_size: expected an integer >= 1"),
        (lambda: Loader(DATA, 2.0), ValueError, "got 2.0"),
        (
            lambda: Loader(DATA, 100),
            ValueError,
            r"batch_size: expected at most 53, the number of samples, .* got 100\. Write a smaller",
        ),
        (lambda: Loader(DATA, 2, seed=0.5), TypeError, "seed: expected an integer"),
        (lambda: Loader(DATA, 2, seed=2**64), ValueError, "64-bit"),
        (lambda: Loader(DATA, 9, ranks=2), ValueError, "expected a multiple of ranks = 2"),
        (lambda: Loader(DATA, 8, ranks=2, rank=2), ValueError, "rank: expected a number from 0"),
        (lambda: Loader(DATA, 8, ranks=2, shuffle=False), ValueError, 'last_batch="pad"'),
        (lambda: Loader(DATA, 8, last_batch="pud"), ValueError, "got 'pud'"),
        (lambda: Loader(DATA, 8, sampler=range(3)), TypeError, "sampler: expected an object"),
        (lambda: list(Loader(DATA, 8, sampler=Shuffled(99))), IndexError, "indices from 0 to 52"),
        (
            lambda: Loader(DATA, 8).batches(Cursor(0, 0, 54)),
            ValueError,
            "expected a position of at most 53",
        ),
        (lambda: Loader(DATA, 8).batches(Cursor(0, -1)), ValueError, "cursor.epoch"),
        (lambda: Loader(DATA, 8).batches({"seed": 0}), TypeError, "from_json"),
        (lambda: Loader(DATA, 8).batches(Cursor(0, state={})), ValueError, "data.Stream"),
        (lambda: Loader(DATA, 8).batches(epochs=-1), ValueError, "epochs: expected"),
        (lambda: Loader(DATA, 8).at(-1), ValueError, "step: expected an integer >= 0"),
        (lambda: list(Loader({"weight": ROWS}, 8, last_batch="pad")), ValueError, "Rename it"),
        (lambda: split(DATA, 53), ValueError, "parts empty"),
        (lambda: concat(), ValueError, "expected at least one, got none"),
        (lambda: concat({"a": ROWS}, {"b": ROWS}), ValueError, "structure"),
    ],
)
def test_loader_and_split_refuse_invalid_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()
