"""Test `Stream`: exact resume, sources with a state, seeding and errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ftrain.data import Cursor, Stream
from tests.data.test_loader import assert_same


class Plain:
    """An iterable dataset without a length or a state."""

    def __init__(self, n=10):
        self.n, self.started = n, 0

    def __iter__(self):
        self.started += 1
        for i in range(self.n):
            yield {"i": torch.tensor(i), "noise": torch.rand(2)}


class Stateful(Plain):
    """A dataset with a state, in types that JSON lacks, and its own generator."""

    def __init__(self, n=10):
        super().__init__(n)
        self.epoch, self.next, self.resumed = 0, 0, False

    def set_epoch(self, epoch):
        self.epoch = epoch

    def state_dict(self):
        return {"next": (self.next,), 3: torch.tensor([self.next]), "b": b"\0", "n": np.int64(5)}

    def load_state_dict(self, state):
        assert state[3].tolist() == list(state["next"])
        assert (state["b"], int(state["n"])) == (b"\0", 5)
        self.next, self.resumed = state["next"][0], True

    def __iter__(self):
        self.started += 1
        self.next = self.next if self.resumed else 0
        self.resumed = False
        while self.next < self.n:
            self.next += 1
            yield {"i": torch.tensor(self.next - 1 + 100 * self.epoch), "noise": torch.zeros(2)}


@pytest.mark.parametrize("batch_size", [None, 1, 3, 10, 99])
@pytest.mark.parametrize("source", [Plain, Stateful])
def test_stream_resumes_with_the_same_batches_from_every_cursor(source, batch_size):
    whole = list(Stream(source(), batch_size, seed=1).batches(epochs=3))
    per_epoch = len(whole) // 3
    assert [c.epoch for _, c in whole[per_epoch - 1 :: per_epoch]] == [1, 2, 3]
    assert (whole[-1][1].epoch, whole[-1][1].position) == (3, 0)
    for done, (_, after) in enumerate(whole, start=1):
        cursor = Cursor.from_json(json.loads(json.dumps(after.to_json())))
        again = Stream(source(), batch_size).batches(cursor, epochs=3 - cursor.epoch)
        for (a, here), (b, expected) in zip(again, whole[done:], strict=True):
            assert (here.seed, here.epoch, here.position) == (1, expected.epoch, expected.position)
            assert_same([(a, None)], [(b, None)])


def test_stream_resumes_from_the_state_of_its_source_without_rereading():
    _, cursor = list(Stream(Stateful(), 3).batches())[1]
    source = Stateful()
    batch, _ = next(Stream(source, 3).batches(cursor))
    assert batch["i"].tolist() == [6, 7, 8]
    assert source.next == 10  # one batch ahead, and not more


def test_stream_with_replay_resumes_without_the_state_of_its_source():
    whole = list(Stream(Stateful(), 3, replay=True).batches(epochs=2))
    assert {cursor.state for _, cursor in whole} == {None}
    for done, (_, cursor) in enumerate(whole, start=1):
        again = Stream(Stateful(), 3, replay=True).batches(cursor, epochs=2 - cursor.epoch)
        assert_same(list(again), whole[done:])


def test_stream_resumes_a_source_with_its_own_generator():
    def stream():
        generator = torch.Generator().manual_seed(torch.randint(99, ()).item())
        return Stream(torch.utils.data.DataLoader(range(20), shuffle=True, generator=generator))

    whole = list(stream().batches(epochs=2))
    assert [b.item() for b, _ in whole[:20]] != [b.item() for b, _ in whole[20:]]
    for done in (5, 20, 30):
        cursor = whole[done - 1][1]
        assert_same(list(stream().batches(cursor, epochs=2 - cursor.epoch)), whole[done:])


def test_stream_passes_the_epoch_to_its_source_and_seeds_each_epoch():
    stream = Stream(Stateful(2))
    assert [int(batch["i"]) for batch, _ in stream.batches(epochs=2)] == [0, 1, 100, 101]
    noise = [batch["noise"][0].item() for batch, _ in Stream(Plain(2)).batches(epochs=2)]
    assert len(set(noise)) == 4


def test_stream_without_batch_size_keeps_the_batches_of_a_data_loader():
    loader = torch.utils.data.DataLoader(range(4), batch_size=2)
    assert [batch.tolist() for batch in Stream(loader)] == [[0, 1], [2, 3]]


class Empty:
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Stream(iter(range(3))), TypeError, "starts anew"),
        (lambda: Stream(i for i in range(3)), TypeError, "starts anew"),
        (lambda: Stream(3), TypeError, "starts anew"),
        (lambda: Stream(range(3), 0), ValueError, "batch_size: expected an integer >= 1"),
        (lambda: Stream(range(3), seed="a"), TypeError, "seed: expected an integer"),
        (lambda: list(Stream(Empty())), ValueError, "got 0 from Empty: it is empty"),
        (lambda: list(Stream(range(3)).batches(Cursor(0, 0, 9))), ValueError, "got 3 from range"),
        (
            lambda: list(Stream(range(3)).batches(Cursor(0, 0, 1, {}))),
            ValueError,
            "expected a method load_state_dict",
        ),
        (lambda: Stream(range(3)).batches(epochs=1.5), ValueError, "epochs: expected"),
        (
            lambda: Cursor(0, state={"a": object()}).to_json(),
            TypeError,
            r"state\['a'\]: .* got object",
        ),
    ],
)
def test_stream_refuses_invalid_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()
