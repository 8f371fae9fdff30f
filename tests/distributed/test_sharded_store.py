"""Test the store of several ranks, in which rank 0 decides for all. The ranks are threads."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist

from ftrain import checkpoint
from ftrain.checkpoint import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointLockedError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointRankError,
)
from ftrain.distributed import ShardedStore, store
from ftrain.distributed._peers import Peers
from ftrain.testing import assert_same_bits
from tests.checkpoint.states import flip, train_state
from tests.distributed.threads import blank, each, layouts, local

RANKS = 2


class Ranks:
    """Stores of all ranks, on which a function is called at the same time."""

    def __init__(self, directory, **options):
        self.messages = dist.HashStore()
        self.shards = layouts(train_state(0), RANKS)
        self.stores = self(
            lambda rank: ShardedStore(directory, rank, layout=self.shards[rank], **options)
        )

    def __call__(self, fn):
        return each(RANKS, lambda peers: fn(peers.rank))

    def save(self, step, state=None, **options):
        state = train_state(step) if state is None else state
        return self(
            lambda rank: self.stores[rank].save(
                local(state, self.shards[rank]), step=step, metadata={"at": step}, **options
            )
        )

    def load(self, **options):
        like = train_state(0)
        return self(
            lambda rank: self.stores[rank].load(blank(local(like, self.shards[rank])), **options)
        )

    def check_loads(self, expected, **options):
        for rank, (state, metadata) in enumerate(self.load(**options)):
            assert_same_bits(state, local(train_state(expected), self.shards[rank]))
            assert metadata == {"at": expected}

    def close(self):
        self(lambda rank: self.stores[rank].close())


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """Provide a function that opens the stores of all ranks, which exchange messages in memory."""
    opened = []
    messages = dist.HashStore()
    monkeypatch.setattr(
        store,
        "peers_of",
        lambda rank, timeout, use: Peers(messages, rank, RANKS, "threads", timeout, use),
    )

    def start(**options):
        opened.append(Ranks(tmp_path / "run", timeout=20.0, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_ranks_of_a_store_save_keep_and_load_the_same_checkpoints(ranks, tmp_path, asynchronous):
    many = ranks(keep_last=2, keep_best=1, asynchronous=asynchronous)
    for step, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0]):
        paths = many.save(step, metrics={"loss": loss})
        assert {path.name for path in paths} == {f"step-{step:012d}"}
    many(lambda rank: many.stores[rank].wait())
    assert many.stores[0].steps() == [1, 3, 4]
    assert {path.name for path in many(lambda rank: many.stores[rank].latest())} == {
        "step-000000000004"
    }
    assert {path.name for path in many(lambda rank: many.stores[rank].best())} == {
        "step-000000000001"
    }
    many.check_loads(4)
    many.check_loads(1, step=1)
    many.close()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {".lock", *(f"step-{step:012d}" for step in (1, 3, 4))}
    with checkpoint.Store(tmp_path / "run") as single:
        state, _ = single.load(like=blank(train_state(0)))
        assert_same_bits(state, train_state(4))
        single.save(train_state(7), step=7, metadata={"at": 7})
    ranks().check_loads(7)


def test_damaged_checkpoint_is_skipped_by_all_ranks(ranks, tmp_path):
    many = ranks()
    for step in (1, 2, 3):
        many.save(step)
    flip(tmp_path / "run" / f"step-{3:012d}" / "rank-00001-00000.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        many.check_loads(2)
        for error in many.load(step=3):
            assert isinstance(error, CheckpointCorruptError)
            assert "(on rank 1)" in str(error)
        for step in (1, 2):
            flip(tmp_path / "run" / f"step-{step:012d}" / "rank-00001-00000.safetensors")
        for error in many.load():
            assert isinstance(error, CheckpointCorruptError)
        # A damaged checkpoint may be replaced by another of its step.
        assert {path.name for path in many.save(3)} == {f"step-{3:012d}"}
    many.check_loads(3)


def test_load_from_an_empty_store_returns_the_default_or_raises_on_all_ranks(ranks):
    many = ranks()
    for _, metadata in many.load(default={"at": 0}):
        assert metadata == {"at": 0}
    for error in [*many.load(), *many.load(step=5)]:
        assert isinstance(error, CheckpointNotFoundError), error


def test_mismatch_on_one_rank_ends_the_load_on_all_ranks(ranks):
    many = ranks()
    many.save(1)
    like = train_state(0)

    def load(rank):
        given = local(like, many.shards[rank])
        return many.stores[rank].load(given if rank == 0 else given.replace(extras={}))

    first, second = many(load)
    assert isinstance(first, CheckpointRankError)
    assert isinstance(second, CheckpointMismatchError)
    many.check_loads(1)


def test_save_of_an_existing_step_is_refused_or_replaces_it_on_all_ranks(ranks):
    many = ranks()
    many.save(1)
    other = train_state(1).replace(extras={"ema": torch.ones(5, 3).t()})
    for error in many.save(1, other):
        assert isinstance(error, CheckpointExistsError)
    assert {path.name for path in many.save(1, other, replace=True)} == {f"step-{1:012d}"}
    for rank, (state, _) in enumerate(many.load()):
        assert_same_bits(state, local(other, many.shards[rank]))
    many(lambda rank: many.stores[rank].delete(1))
    for error in many(lambda rank: many.stores[rank].delete(1)):
        assert isinstance(error, CheckpointNotFoundError)


def test_locked_directory_is_refused_on_all_ranks(ranks, tmp_path):
    with checkpoint.Store(tmp_path / "run") as single:
        single.lock()
        many = ranks()
        for error in many.save(1):
            assert isinstance(error, CheckpointLockedError)
    assert many(lambda rank: many.stores[rank].lock()) == [True, True]
    assert many(lambda rank: many.stores[rank].lock()) == [False, False]


def test_discard_unused_deletes_the_directory_that_lock_created(ranks, tmp_path):
    many = ranks()
    assert many(lambda rank: many.stores[rank].lock()) == [True, True]
    assert (tmp_path / "run").exists()
    many(lambda rank: many.stores[rank].discard_unused())
    assert not (tmp_path / "run").exists()


def test_failed_asynchronous_save_is_raised_on_all_ranks_and_the_next_succeeds(ranks):
    many = ranks(asynchronous=True)
    many.save(1)
    many(lambda rank: many.stores[rank].wait())
    bad = train_state(2).replace(step=torch.tensor(99))
    many(
        lambda rank: many.stores[rank].save(
            local(bad if rank else train_state(2), many.shards[rank]), step=2
        )
    )
    errors = many.save(3)
    assert all(isinstance(error, CheckpointRankError) for error in errors), errors
    assert ".step: expected the bytes of rank 0" in str(errors[0])
    many.save(3)
    many.check_loads(3)
