"""Test that batches are a function of the cursor, for any start, split and kind of data."""

from __future__ import annotations

import collections
import itertools
import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Subset, TensorDataset

from ftrain import random, tree
from ftrain.data import (
    ByLength,
    Cursor,
    Loader,
    Mixed,
    Shuffled,
    Stream,
    Weighted,
    Windows,
    concat,
    sample_keys,
    split,
)
from ftrain.testing import assert_same_bits

N = 53
ROWS = torch.arange(N)
DATA = {"x": torch.randn(N, 3, generator=torch.Generator().manual_seed(0)), "i": ROWS}


def noisy(sample, key):
    return {**sample, "x": sample["x"] + random.normal(key, sample["x"].shape)}


def assert_same(found, expected):
    """Raise unless batches are equal bit for bit and cursors are equal."""
    assert len(found) == len(expected)
    for (a, after_a), (b, after_b) in zip(found, expected, strict=True):
        assert after_a == after_b
        assert_same_bits(a, b)


SAMPLERS = {
    "shuffled": lambda: None,
    "weighted": lambda: Weighted(ROWS % 3, samples=60),
    "by length": lambda: ByLength(ROWS % 7, group=8, window=2),
    "mixed": lambda: Mixed([13, 40], [0.5, 0.5]),
}


@pytest.mark.parametrize("last", ["drop", "keep", "pad"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_loader_resumes_with_the_same_batches_from_every_cursor(sampler, last):
    loader = Loader(DATA, 8, seed=5, sampler=SAMPLERS[sampler](), last_batch=last, augment=noisy)
    whole = list(loader.batches(epochs=3))
    assert len(whole) == 3 * len(loader)
    for done, (_, after) in enumerate(whole, start=1):
        cursor = Cursor.from_json(json.loads(json.dumps(after.to_json())))
        again = Loader(
            DATA, 8, seed=99, sampler=SAMPLERS[sampler](), last_batch=last, augment=noisy
        )
        assert_same(list(again.batches(cursor, epochs=3 - cursor.epoch)), whole[done:])
        assert again.at(done) == Cursor(99, cursor.epoch, cursor.position)


@given(
    n=st.integers(1, 60),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    seed=st.integers(0, 2**64 - 1),
)
def test_sample_order_does_not_depend_on_batch_size(n, sizes, seed):
    """Batches of changing size, each from the cursor of the one before it, give one order."""
    data = torch.arange(n)
    expected = Shuffled(n).at(np.arange(n), seed=seed, epoch=0).tolist()
    cursor, found = Cursor(seed), []
    for size in itertools.cycle(sizes):
        batch, cursor = next(Loader(data, size, last_batch="keep").batches(cursor))
        found += batch.tolist()
        if cursor.epoch:
            break
    assert found == expected


@given(
    n=st.integers(1, 70),
    ranks=st.integers(1, 4),
    rows=st.integers(1, 5),
    last=st.sampled_from(["drop", "pad"]),
    shuffle=st.booleans(),
)
def test_ranks_receive_disjoint_rows_of_each_batch(n, ranks, rows, last, shuffle):
    if last == "drop" and n < ranks * rows:
        return
    options = {"last_batch": last, "shuffle": shuffle, "seed": 3}
    alone = list(Loader({"i": torch.arange(n)}, ranks * rows, **options).batches(epochs=2))
    loaders = [
        Loader({"i": torch.arange(n)}, ranks * rows, rank=rank, ranks=ranks, **options)
        for rank in range(ranks)
    ]
    assert {len(loader) for loader in loaders} == {len(alone) // 2}
    shares = zip(*(loader.batches(epochs=2) for loader in loaders), strict=True)
    for (whole, after), parts in zip(alone, shares, strict=True):
        assert {cursor for _, cursor in parts} == {after}
        assert_same_bits(tree.map(lambda *rows: torch.cat(rows), *(p for p, _ in parts)), whole)


@given(n=st.integers(1, 40), rows=st.integers(1, 9), ranks=st.integers(1, 3))
def test_padded_batches_give_each_sample_a_total_weight_of_one(n, rows, ranks):
    found = torch.zeros(n)
    for rank in range(ranks):
        loader = Loader(
            {"i": torch.arange(n)},
            rows * ranks,
            shuffle=False,
            last_batch="pad",
            rank=rank,
            ranks=ranks,
        )
        for batch in loader:
            assert batch["i"].shape == batch["weight"].shape == (rows,)
            found.index_add_(0, batch["i"], batch["weight"])
    assert (found == 1).all()


def test_resuming_reads_only_samples_after_the_cursor():
    class Counted:
        def __init__(self):
            self.asked = []

        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            self.asked.append(index)
            return index

    data = Counted()
    cursor = Loader(data, 64).at(10**6)
    assert cursor == Cursor(0, 0, 64 * 10**6)
    batch, after = next(Loader(data, 64).batches(cursor))
    assert data.asked == batch.tolist()
    assert len(set(data.asked)) == 64
    assert after.position == cursor.position + 64


class Point(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: x,
        lambda x, y: x.numpy(),
        lambda x, y: (x, y),
        lambda x, y: {"x": x, "y": y.numpy()},
        lambda x, y: {"a": {"x": x}, "b": (y,)},
        Point,
    ],
)
def test_a_batch_has_the_tree_structure_of_its_dataset(make):
    x, y = torch.randn(10, 2), torch.arange(10)
    data = make(x, y)
    batches = list(Loader(data, 4, shuffle=False))
    assert len(batches) == 3
    for batch, rows in zip(batches, (slice(0, 4), slice(4, 8), slice(8, 10)), strict=True):
        expected = tree.map(lambda leaf, rows=rows: torch.as_tensor(leaf)[rows], data)
        assert tree.structure(batch) == tree.structure(expected)
        assert_same_bits(batch, expected)


def test_loader_reads_read_only_reversed_and_big_endian_arrays(recwarn):
    fixed = np.arange(6.0)
    fixed.flags.writeable = False
    data = {"fixed": fixed, "turned": np.arange(6)[::-1], "foreign": np.arange(6, dtype=">i4")}
    batch = next(iter(Loader(data, 6, shuffle=False)))
    assert {name: rows.tolist() for name, rows in batch.items()} == {
        "fixed": [0, 1, 2, 3, 4, 5],
        "turned": [5, 4, 3, 2, 1, 0],
        "foreign": [0, 1, 2, 3, 4, 5],
    }
    assert not recwarn.list


def test_loader_reads_any_mapping_as_a_tree():
    data = collections.UserDict(DATA)
    assert_same(list(Loader(data, 8).batches()), list(Loader(DATA, 8).batches()))


def test_loader_and_stream_move_batches_to_the_device():
    here = list(Loader(DATA, 8, device="cpu").batches())
    assert_same(here, list(Loader(DATA, 8).batches()))
    for batch in Loader(DATA, 8, device="meta"):
        assert batch["x"].device.type == batch["i"].device.type == "meta"
        assert batch["x"].shape == (8, 3)
    assert [b.device.type for b in Stream(OnlyIterable(), 3, device="meta")] == ["meta"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_on_a_cuda_device_equal_those_on_the_cpu(prefetch):
    there = list(Loader(DATA, 8, augment=noisy, device="cuda", prefetch=prefetch).batches(epochs=2))
    found = [(tree.map(torch.Tensor.cpu, batch), cursor) for batch, cursor in there]
    assert_same(found, list(Loader(DATA, 8, augment=noisy).batches(epochs=2)))


def test_padded_batches_that_are_not_dicts_are_pairs_of_batch_and_weight():
    (x, y), weight = list(Loader((ROWS, ROWS), 10, shuffle=False, last_batch="pad"))[-1]
    assert x.tolist() == y.tolist() == [50, 51, 52] + [52] * 7
    assert weight.tolist() == [1.0] * 3 + [0.0] * 7


@pytest.mark.parametrize(
    "data",
    [
        [{"i": i} for i in range(N)],
        TensorDataset(ROWS),
        Subset([{"i": i} for i in range(N)], range(N)),
        Windows(ROWS, length=1),
    ],
)
def test_sample_order_does_not_depend_on_the_kind_of_dataset(data):
    def numbers(batch):
        return tree.leaves(batch)[0].flatten().tolist()

    expected = [numbers(batch) for batch in Loader({"i": ROWS}, 8, seed=1)]
    assert [numbers(batch) for batch in Loader(data, 8, seed=1)] == expected


def test_augmenting_an_array_dataset_equals_augmenting_a_list():
    """Arrays are augmented by vmap over the batch, lists sample by sample, with equal bits."""
    samples = [{"x": x, "i": i} for x, i in zip(DATA["x"], DATA["i"], strict=True)]
    at_once = list(Loader(DATA, 8, augment=noisy).batches(epochs=2))
    one_by_one = list(Loader(samples, 8, augment=noisy).batches(epochs=2))
    assert_same(at_once, one_by_one)
    batch = at_once[0][0]
    expected = noisy({"x": DATA["x"][batch["i"][3]]}, sample_keys(0, 0, torch.tensor([3]))[0])
    assert_same_bits(batch["x"][3], expected["x"])


def test_loader_reads_a_whole_batch_at_once_if_the_dataset_can():
    """Use one read per batch, as Hugging Face datasets allow; each sample has its own key."""

    class ReadsMany:
        reads = 0

        def __len__(self):
            return N

        def __getitem__(self, index):
            raise AssertionError("one by one")

        def __getitems__(self, indices):
            self.reads += 1
            return [{"x": DATA["x"][i], "i": DATA["i"][i]} for i in indices]

    for augment in (None, noisy):
        data = ReadsMany()
        found = list(Loader(data, 8, augment=augment).batches())
        assert_same(found, list(Loader(DATA, 8, augment=augment).batches()))
        assert data.reads == len(found)


def test_a_sample_drawn_twice_is_augmented_differently():
    loader = Loader({"x": torch.zeros(1, 4)}, 6, sampler=Weighted([1.0], samples=6), augment=noisy)
    assert len(torch.unique(next(iter(loader))["x"], dim=0)) == 6


def test_augmentation_keys_are_distinct_and_differ_from_state_keys():
    places = torch.arange(1000)
    keys = torch.cat([sample_keys(seed, epoch, places) for seed in (0, 1) for epoch in (0, 1)])
    roots = torch.cat([random.split(random.key(0), 8), random.key(0)[None]])
    assert len(torch.unique(torch.cat([keys, roots]), dim=0)) == 4009


def test_loader_drops_the_last_partial_batch_by_default_only_if_shuffled():
    assert [len(b["i"]) for b in Loader(DATA, 10, shuffle=False)] == [10] * 5 + [3]
    assert [len(b["i"]) for b in Loader(DATA, 10)] == [10] * 5


def test_loader_with_epochs_none_is_endless_and_with_epochs_zero_is_empty():
    loader = Loader(DATA, 50)
    assert [c.epoch for _, c in itertools.islice(loader.batches(epochs=None), 5)] == [1, 2, 3, 4, 5]
    assert list(loader.batches(epochs=0)) == []


def test_a_cursor_with_less_than_a_batch_left_continues_in_the_next_epoch():
    batch, after = next(Loader(DATA, 40).batches(Cursor(0, 0, 30), epochs=2))
    assert after == Cursor(0, 2, 0)
    assert_same_bits(batch, next(Loader(DATA, 40).batches(Cursor(0, 1)))[0])


def test_batches_share_no_memory_with_the_data():
    data = {"x": torch.zeros(4, 2)}
    next(iter(Loader(data, 4, shuffle=False)))["x"].fill_(1)
    assert not data["x"].any()


@pytest.mark.parametrize("data", [DATA, [0, 1, 2], Windows(ROWS, 2)])
def test_concat_of_split_parts_contains_every_sample(data):
    def numbers(part):
        return [row for batch in Loader(part, 1, shuffle=False) for row in _rows(batch)]

    rest, held_out = split(data, 1)
    assert len(numbers(held_out)) == 1
    assert sorted(numbers(concat(rest, held_out))) == sorted(numbers(data))
    assert numbers(split(data, 1)[1]) == numbers(held_out)


def _rows(batch):
    leaves = [leaf.reshape(len(leaf), -1).tolist() for leaf in tree.leaves(batch)]
    return list(zip(*leaves, strict=True))


class OnlyIterable:
    def __iter__(self):
        return iter(range(3))


def test_an_error_in_reading_a_sample_contains_its_index():
    class Broken(list):
        def __getitem__(self, index):
            raise RuntimeError("the disk")

    with pytest.raises(RuntimeError) as caught:
        list(Loader(Broken(range(3)), 1, shuffle=False))
    assert caught.value.__notes__ == ["while fetching sample 0 of the dataset"]


def test_an_augmentation_that_cannot_be_vmapped_raises_with_a_remedy():
    def branching(sample, key):
        return sample if random.uniform(key) < 0.5 else -sample

    with pytest.raises(RuntimeError) as caught:
        list(Loader(torch.zeros(4), 2, augment=branching))
    assert "torch.vmap" in caught.value.__notes__[0]
    assert len(list(Loader(list(torch.zeros(4)), 2, augment=branching))) == 2


def test_stream_yields_a_partial_last_batch():
    assert [b.tolist() for b in Stream(OnlyIterable(), 2)] == [[0, 1], [2]]


def test_numpy_integers_give_the_same_batches_and_cursors_as_those_of_python():
    found = Loader(DATA, np.int64(5), seed=np.uint32(3))
    expected = Loader(DATA, 5, seed=3)
    for (batch, cursor), (other, at) in zip(found.batches(), expected.batches(), strict=True):
        assert_same_bits(batch, other)
        assert json.dumps(cursor.to_json()) == json.dumps(at.to_json())
    streamed = [
        cursor.to_json() for _, cursor in Stream(range(5), np.int64(2), seed=np.int64(1)).batches()
    ]
    assert json.loads(json.dumps(streamed)) == streamed
