"""Test saves of several ranks that fail on one rank: all or nothing is published.

The ranks are threads.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket

import pytest
import torch

from ftrain import checkpoint
from ftrain.checkpoint import CheckpointRankError, _files
from ftrain.checkpoint._draft import collect
from ftrain.checkpoint._files import Files
from ftrain.distributed.save import publish
from ftrain.testing import assert_same_bits
from tests.checkpoint.faults import Failing
from tests.checkpoint.states import train_state
from tests.distributed.threads import blank, each, layouts, local, memory_folder, saved

W = torch.arange(12.0).reshape(6, 2)


class FullDisk(Files):
    """File system that has no space for files of rank 1."""

    def call(self, operation, path, function, *args):
        if operation == "write" and "rank-00001" in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return super().call(operation, path, function, *args)


def test_save_with_a_full_disk_on_one_rank_publishes_nothing_and_names_the_rank(tmp_path):
    state = train_state(1)
    with _files.replaced(FullDisk()):
        first, second = saved(tmp_path / "one", [state, state], [{}, {}])
    assert isinstance(second, checkpoint.CheckpointWriteError)
    assert second.errno == errno.ENOSPC
    assert isinstance(first, CheckpointRankError)
    assert (first.rank, first.host) == (1, socket.gethostname())
    assert "No space left on device" in str(first)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(saved(tmp_path / "one", [state, state], [{}, {}])[0], checkpoint.Manifest)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_save_with_any_failed_file_operation_publishes_all_or_nothing(code):
    state, old = train_state(1), train_state(0)
    shards = layouts(state, 2)
    published = failed = 0
    with memory_folder() as folder:
        checkpoint.save(folder / "old", old)
        for k in itertools.count():
            path, files = folder / str(k), Failing(k, code)
            with _files.replaced(files):
                found = saved(path, [local(state, layout) for layout in shards], shards)
            if files.failed is None:
                break
            errors = [error for error in found if isinstance(error, Exception)]
            assert all(isinstance(error, checkpoint.CheckpointError) for error in errors), errors
            assert len(errors) in (0, 2)
            if path.exists():
                assert_same_bits(checkpoint.load(path, blank(state))[0], state)
            published += not errors
            failed += bool(errors)
            assert path.exists() == (not errors)
        assert_same_bits(checkpoint.load(folder / "old", blank(old))[0], old)
    assert failed > 20, (failed, published)


def test_error_of_a_save_names_the_rank_that_does_not_answer(tmp_path):
    def one(peers):
        if peers.rank != 2:
            return publish(lambda: collect({"w": W}, *[None] * 4), {}, str(tmp_path / "one"), peers)
        return None

    for error in each(3, one, timeout=0.5)[:2]:
        assert isinstance(error, CheckpointRankError)
        assert error.rank == 2
        assert "did not answer within 0.5 s" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_save_to_different_paths_are_refused(tmp_path):
    def one(peers):
        path = str(tmp_path / str(peers.rank))
        return publish(lambda: collect({"w": W}, *[None] * 4), {}, path, peers)

    for error in each(2, one, timeout=5):
        assert "expected the same call on every rank, got: save the checkpoint" in str(error)
