"""Test checkpoints of real processes: world sizes, kills, stalls, a mesh of some ranks."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh

from ftrain import checkpoint, distributed
from ftrain.checkpoint import CheckpointRankError, Shard, _files
from ftrain.checkpoint._files import Files
from ftrain.testing import assert_same_bits
from tests.campaign import CAMPAIGN
from tests.checkpoint.states import train_state
from tests.distributed import forked
from tests.distributed.campaign_kills import campaign
from tests.distributed.threads import blank, layouts, local


def hand_on(mesh, source, target):
    """Load a checkpoint as this rank's shards, compare the bytes, and save the shards again."""
    state = train_state(5, size=9)
    layout = layouts(state, mesh.size())[mesh.get_local_rank()]
    like = blank(local(state, layout))
    got, metadata = distributed.load(source, like, mesh, layout=layout)
    assert_same_bits(got, local(state, layout))
    manifest = distributed.save(target, got, mesh, layout=layout, metadata=metadata, step=5)
    with distributed.ShardedStore(f"{target}-run", mesh, layout=layout, asynchronous=True) as store:
        for step in (1, 2):
            store.save(got, step=step, metadata={"at": step})
        store.wait()
        assert store.steps() == [1, 2]
        assert_same_bits(store.load(like)[0], got)
        assert store.latest().name == "step-000000000002"
    assert manifest == checkpoint.verify(target)


def test_checkpoint_saved_and_loaded_by_one_two_four_and_one_processes_keeps_its_bytes(tmp_path):
    state, source = train_state(5, size=9), str(tmp_path / "start")
    checkpoint.save(source, state, metadata={"epoch": 2})
    for index, ranks in enumerate((1, 2, 4, 1)):
        target = str(tmp_path / str(index))
        with forked.ranks(ranks, hand_on, source, target) as pids:
            assert forked.exit_codes(pids, 60.0) == [0] * ranks
        source = target
    loaded, metadata = checkpoint.load(source, like=blank(state))
    assert_same_bits(loaded, state)
    assert metadata == {"epoch": 2}


class Interrupted(Files):
    """File system that sends a signal to its own process at the first write to a file of ranks."""

    def __init__(self, number):
        self.number = number

    def call(self, operation, path, function, *args):
        if operation == "write" and "rank-" in path:
            os.kill(os.getpid(), self.number)
        return super().call(operation, path, function, *args)


def save_with_a_signal(mesh, path, whom, number, timeout):
    """Save while one rank gets a signal; write the other rank's error, and if it came in time."""
    state, rank = train_state(1), mesh.get_local_rank()
    layout = layouts(state, mesh.size())[rank]
    files, start = Interrupted(number) if rank == whom else Files(), time.monotonic()
    try:
        with _files.replaced(files):
            distributed.save(path, local(state, layout), mesh, layout=layout, timeout=timeout)
    except CheckpointRankError as error:
        in_time = time.monotonic() - start < 1.1 * timeout + 5.0
        with open(f"{path}-error", "w") as file:
            file.write(f"{error.rank} {error.host == socket.gethostname()} {in_time} {error.cause}")
        raise


@pytest.mark.parametrize(
    ("whom", "number", "timeout", "cause"),
    [
        (0, signal.SIGKILL, 30.0, "has ended"),
        (1, signal.SIGKILL, 30.0, "has ended"),
        (0, signal.SIGSTOP, 1.0, "did not answer within 1 s"),
        (1, signal.SIGSTOP, 1.0, "did not answer within 1 s"),
    ],
)
def test_rank_that_dies_or_stalls_in_a_save_is_named_and_nothing_is_published(
    tmp_path, whom, number, timeout, cause
):
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = (str(folder / "one"), whom, number, timeout)
    with forked.ranks(2, save_with_a_signal, *arguments) as pids:
        codes = forked.exit_codes([pids[1 - whom]], 40.0)
    assert codes == [forked.RANK_ERROR]
    error = (folder / "one-error").read_text()
    assert error.startswith(f"{whom} True True ")
    assert cause in error
    assert not (folder / "one").exists()
    with checkpoint.Store(
        folder
    ) as store:  # the next writer deletes the files that a dead rank 0 left
        store.save({"w": torch.ones(1)}, step=1)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".lock", "one-error", "step-000000000001"]


def part_of_the_ranks(mesh, folder):
    """Save on two of three ranks, in a mesh of their own."""
    rank = mesh.get_local_rank()
    pair = DeviceMesh("cpu", [2, 0], mesh_dim_names=("pair",))
    if rank == 1:
        with pytest.raises(ValueError, match="expected a mesh with rank 1"):
            distributed.save(f"{folder}/one", {"w": torch.ones(3)}, pair)
        return
    layout = {"['w']": Shard((4,), 0 if rank == 2 else 1, 1 if rank == 2 else 3)}
    w = torch.arange(4.0)[layout["['w']"].start :][: layout["['w']"].rows]
    distributed.save(f"{folder}/one", {"w": w}, pair, layout=layout)


def test_save_works_on_a_mesh_of_some_ranks_in_any_order(tmp_path):
    with forked.ranks(3, part_of_the_ranks, str(tmp_path)) as pids:
        assert forked.exit_codes(pids, 40.0) == [0, 0, 0]
    got, _ = checkpoint.load(tmp_path / "one", {"w": torch.zeros(4)})
    assert_same_bits(got, {"w": torch.arange(4.0)})


def test_killed_ranks_lose_no_acknowledged_checkpoint():
    kills = 200 if CAMPAIGN else 6
    result = campaign(kills, seed=0)
    assert result.wrong() == {}
    assert result.kills == kills
    assert result.steps > 0
