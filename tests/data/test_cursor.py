"""Test that a cursor is refused for data of another kind, length or order."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
import torch

from ftrain.data import ByLength, Cursor, Loader, Mixed, Shuffled, Stream, Weighted


class Endless:
    def __iter__(self):
        return itertools.count()


SOURCES = {
    "100 samples": lambda: Loader(torch.arange(100), 8),
    "120 samples": lambda: Loader(torch.arange(120), 8),
    "64 samples": lambda: Loader(torch.arange(100), 8, sampler=Weighted([1.0] * 100, samples=64)),
    "a stream": lambda: Stream(Endless()),
    "a stream, in batches of 8": lambda: Stream(Endless(), 8),
    "a stream of 100": lambda: Stream(range(100)),
    "a stream of 100, in batches of 8": lambda: Stream(range(100), 8),
    "a stream of 120, in batches of 8": lambda: Stream(range(120), 8),
}


def stored(cursor: Cursor) -> Cursor:
    return Cursor.from_json(json.loads(json.dumps(cursor.to_json())))


@pytest.mark.parametrize("made_for", SOURCES)
@pytest.mark.parametrize("given_to", SOURCES)
def test_a_cursor_is_refused_by_data_of_another_kind_or_length(made_for, given_to):
    begun = SOURCES[made_for]()
    cursors = [begun.start(), *(after for _, after in itertools.islice(begun.batches(), 2))]
    for cursor in [*cursors, *map(stored, cursors)]:
        data = SOURCES[given_to]()
        if made_for == given_to:
            assert next(data.batches(cursor))[1].of == made_for
            continue
        with pytest.raises(
            ValueError, match=f"for {given_to}, got .* other data: {made_for}\\. Pass"
        ):
            data.batches(cursor)


@pytest.mark.parametrize("given_to", SOURCES)
def test_a_cursor_stored_without_a_data_description_is_accepted(given_to):
    old = {"order": 1, "seed": 0, "epoch": 1, "position": 0}
    cursor = Cursor.from_json(old)
    assert cursor.to_json() == old
    assert next(SOURCES[given_to]().batches(cursor))[1].epoch == 1


def test_a_cursor_is_accepted_by_a_loader_with_other_options():
    """These options may change during an epoch; the seed comes from the cursor."""
    _, cursor = next(SOURCES["100 samples"]().batches())
    for options in ({}, {"seed": 3, "last_batch": "pad"}, {"sampler": Renamed(100)}, {"ranks": 2}):
        for place in (cursor, stored(cursor)):
            batch, after = next(Loader(torch.arange(100), 4, **options).batches(place))
            assert after.position == 12
            rows = batch[0] if "last_batch" in options else batch
            assert (
                rows.tolist()
                == list(Shuffled(100).at(np.arange(8, 12), seed=0, epoch=0))[: len(rows)]
            )


class Renamed(Shuffled):
    """A sampler with the same order and another class name."""


class Listed:
    """A user's sampler: one list of positions for each epoch of the run."""

    def __init__(self, n, *shifts):
        self.n, self.shifts = n, shifts

    def __len__(self):
        return self.n

    def at(self, positions, *, seed, epoch):
        return (positions + self.shifts[epoch]) % self.n


def test_a_cursor_is_accepted_by_a_loader_whose_sampler_lists_one_more_epoch():
    *_, (_, cursor) = Loader(torch.arange(9), 2, sampler=Listed(9, 3)).batches()
    longer = Loader(torch.arange(9), 2, sampler=Listed(9, 3, 1))
    assert next(longer.batches(cursor))[0].tolist() == [1, 2]


N = 5000
ORDERS = {
    "shuffled": {},
    "as they lie": {"shuffle": False},
    "weighted": {"sampler": Weighted([1.0] * N)},
    "weighted otherwise": {"sampler": Weighted([1.0] * (N // 2) + [2.0] + [1.0] * (N // 2 - 1))},
    "by length": {"sampler": ByLength([i % 7 for i in range(N)], 8)},
    "by other lengths": {"sampler": ByLength([i % 11 for i in range(N)], 8)},
    "by length in other groups": {"sampler": ByLength([i % 7 for i in range(N)], 16)},
    "mixed": {"sampler": Mixed([1000, 4000])},
    "mixed otherwise": {"sampler": Mixed([1000, 4000], weights=[0.3, 0.7])},
    "of our own": {"sampler": Listed(N, 1, 0)},
    "of our own, otherwise": {"sampler": Listed(N, 2, 0)},
}


@pytest.mark.parametrize("made_for", ORDERS)
def test_a_cursor_is_refused_by_a_loader_with_another_order(made_for):
    """A run resumed with another sampler would see some samples twice and others never."""

    def loader(name):
        return Loader(torch.arange(N), 8, last_batch="keep", **ORDERS[name])

    begun = loader(made_for)
    _, after = next(begun.batches())
    *_, (_, end) = begun.batches()
    for cursor in (begun.start(), after, end, stored(after)):
        for given_to in ORDERS:
            if given_to == made_for:
                next(loader(given_to).batches(cursor))
                continue
            with pytest.raises(ValueError, match="made for another order: that of") as raised:
                loader(given_to).batches(cursor)
            remedy = f"`shuffle` or `sampler` .* pass data.Cursor\\(0, {cursor.epoch}\\)[.]$"
            assert re.search(remedy, str(raised.value))
            for name in (made_for, given_to):
                assert loader(name).start().sampler in str(raised.value)
    for old in (Cursor(0, 1, 8), Cursor(0, 1, 8, of=f"{N} samples")):  # before there were such
        assert next(loader(made_for).batches(stored(old)))[1].sampler == begun.start().sampler


def test_cursor_equality_ignores_the_data_description():
    loader = SOURCES["100 samples"]()
    assert loader.start() == Cursor(0)
    assert len({loader.start(), Cursor(0)}) == 1
    assert loader.at(13) == Cursor(0, 1, 8)
    assert loader.at(13).of == "100 samples"
    assert loader.at(13).sampler == "shuffle=True da11e2afddfe"  # on any machine, for any version


@pytest.mark.parametrize("name", ["of", "sampler"])
@pytest.mark.parametrize("witness", [100, ["100 samples"], {}])
def test_cursor_from_json_refuses_an_invalid_data_description(name, witness):
    with pytest.raises(ValueError, match=f"cursor.{name}: expected a string or None"):
        Cursor.from_json({"order": 1, "seed": 0, "epoch": 0, "position": 0, name: witness})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"seed": 0}, "content: expected a dict"),
        (None, "content: expected a dict"),
        ({"order": 2, "seed": 0, "epoch": 0, "position": 0}, "got 2"),
        ({"order": 1, "seed": 0, "epoch": -1, "position": 0}, "cursor.epoch"),
        ({"order": 1, "seed": 0, "epoch": 0, "position": True}, "cursor.position"),
    ],
)
def test_cursor_from_json_refuses_damaged_content(content, message):
    with pytest.raises(ValueError, match=message):
        Cursor.from_json(content)
