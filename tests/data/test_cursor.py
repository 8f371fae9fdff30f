"""A cursor knows what it was made for: data of another kind or length refuse it, and say so."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from ftrain.data import Cursor, Loader, Stream, Weighted


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
def test_a_cursor_fits_what_it_was_made_for_and_nothing_else(made_for, given_to):
    begun = SOURCES[made_for]()
    cursors = [begun.start(), *(after for _, after in itertools.islice(begun.batches(), 2))]
    for cursor in [*cursors, *map(stored, cursors)]:
        data = SOURCES[given_to]()
        if made_for == given_to:
            assert next(data.batches(cursor))[1].of == made_for
            continue
        with pytest.raises(ValueError, match=f"for {made_for}, and this is {given_to}\\. Go on"):
            data.batches(cursor)


@pytest.mark.parametrize("given_to", SOURCES)
def test_one_that_was_stored_before_there_were_witnesses_fits(given_to):
    old = {"order": 1, "seed": 0, "epoch": 1, "position": 0}
    cursor = Cursor.from_json(old)
    assert cursor.to_json() == old
    assert next(SOURCES[given_to]().batches(cursor))[1].epoch == 1


def test_batch_size_and_order_are_no_part_of_the_witness():
    """The first may change in the midst of an epoch; the second is the caller's own choice."""
    _, cursor = next(SOURCES["100 samples"]().batches())
    next(Loader(torch.arange(100), 4, shuffle=False, seed=3).batches(cursor))


def test_the_witness_is_no_part_of_the_place():
    loader = SOURCES["100 samples"]()
    assert loader.start() == Cursor(0)
    assert len({loader.start(), Cursor(0)}) == 1
    assert loader.at(13) == Cursor(0, 1, 8)
    assert loader.at(13).of == "100 samples"


@pytest.mark.parametrize("of", [100, ["100 samples"], {}])
def test_a_witness_that_is_none(of):
    with pytest.raises(ValueError, match="cursor.of says"):
        Cursor.from_json({"order": 1, "seed": 0, "epoch": 0, "position": 0, "of": of})
