"""Test the exchange with torch.distributed.checkpoint: each reads the files that the other writes."""

from __future__ import annotations

import os
import pickle
import re

import pytest
import torch
from torch.distributed import checkpoint as torch_dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.tensor import Shard as Rows
from torch.distributed.tensor import distribute_tensor

from ftrain import checkpoint
from ftrain.checkpoint import (
    CheckpointCorruptError,
    CheckpointExistsError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointRankError,
)
from ftrain.distributed import from_dcp, to_dcp
from ftrain.testing import assert_same_bits
from tests.checkpoint.states import DTYPES, random_bytes, train_state
from tests.distributed import forked
from tests.distributed.threads import blank, layouts, local

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_state_survives_a_round_trip_through_dcp(tmp_path):
    state = train_state(3)
    to_dcp(tmp_path / "one", state)
    got = from_dcp(tmp_path / "one", like=blank(state))
    assert_same_bits(got, state)
    assert got.extras["ema"].stride() == (1, 3)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dtype_survives_a_round_trip_through_dcp(tmp_path):
    state = {str(dtype): random_bytes((3, 5), dtype, 1) for dtype in DTYPES}
    state |= {"scalar": torch.tensor(2.0), "empty": torch.empty(0, 3)}
    to_dcp(tmp_path / "one", state)
    assert_same_bits(from_dcp(tmp_path / "one", like=blank(state)), state)


def test_torch_reads_a_dcp_checkpoint_that_ftrain_writes(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = {"params": dict(module.state_dict())}
    to_dcp(tmp_path / "one", state)
    found = {"params": {name: torch.zeros_like(x) for name, x in state["params"].items()}}
    torch_dcp.load(found, checkpoint_id=tmp_path / "one", no_dist=True)
    assert_same_bits(found, state)
    dcp_to_torch_save(tmp_path / "one", tmp_path / "one.pt")
    assert_same_bits(torch.load(tmp_path / "one.pt"), state)


def test_ftrain_reads_a_dcp_checkpoint_that_torch_writes(tmp_path):
    module = torch.nn.Linear(2, 3)
    given = {"params": dict(module.state_dict()), "step": torch.tensor(4)}
    torch_dcp.save(given, checkpoint_id=tmp_path / "one", no_dist=True)
    assert_same_bits(from_dcp(tmp_path / "one", like=blank(given)), given)
    weights = {"params": given["params"]}
    with pytest.raises(CheckpointMismatchError, match="step: in the checkpoint, but not in `like`"):
        from_dcp(tmp_path / "one", like=blank(weights))
    assert_same_bits(from_dcp(tmp_path / "one", like=blank(weights), strict=False), weights)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": torch.zeros(3), "v": torch.zeros(1)}, "v: in `like`, but not in the checkpoint"),
        ({"w": torch.zeros(4)}, r"w: float32\[3\] in the checkpoint, float32\[4\] in `like`"),
        ({"w": torch.zeros(3).double()}, r"w: float32\[3\] in the checkpoint, float64\[3\]"),
    ],
)
def test_dcp_checkpoint_of_another_state_is_refused(tmp_path, like, message):
    to_dcp(tmp_path / "one", {"w": torch.ones(3)})
    with pytest.raises(CheckpointMismatchError, match=message):
        from_dcp(tmp_path / "one", like=like)


def test_pickled_objects_in_a_dcp_checkpoint_are_refused(tmp_path):
    torch_dcp.save({"w": torch.ones(3), "n": 3}, checkpoint_id=tmp_path / "one", no_dist=True)
    with pytest.raises(CheckpointMismatchError, match="n: in the checkpoint, but not in `like`"):
        from_dcp(tmp_path / "one", like={"w": torch.zeros(3)})
    with pytest.raises(CheckpointMismatchError, match="n: a pickled object in the checkpoint"):
        from_dcp(tmp_path / "one", like={"w": torch.zeros(3), "n": torch.tensor(0)})


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_dcp_metadata_whose_pickle_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    to_dcp(tmp_path / "one", {"w": torch.ones(3)})
    (tmp_path / "one" / ".metadata").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointCorruptError, match="got an error: the class or function"):
        from_dcp(tmp_path / "one", like={"w": torch.zeros(3)})
    assert not (tmp_path / "exploded").exists()


def test_dcp_metadata_that_names_a_file_outside_of_the_checkpoint_is_refused(tmp_path):
    to_dcp(tmp_path / "one", {"w": torch.ones(3)})
    path = tmp_path / "one" / ".metadata"
    found = pickle.loads(path.read_bytes())
    for place in found.storage_data.values():
        place.relative_path = "../two/__0_0.distcp"
    path.write_bytes(pickle.dumps(found))
    with pytest.raises(CheckpointCorruptError, match="got the file name"):
        from_dcp(tmp_path / "one", like={"w": torch.zeros(3)})


def test_missing_dcp_checkpoints_and_used_directories_are_refused(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="expected a DCP checkpoint"):
        from_dcp(tmp_path / "one", like={"w": torch.zeros(3)})
    to_dcp(tmp_path / "one", {"w": torch.ones(3)})
    with pytest.raises(CheckpointExistsError, match="expected an unused path"):
        to_dcp(tmp_path / "one", {"w": torch.ones(3)})


def test_state_with_two_leaves_of_one_dcp_name_is_refused(tmp_path):
    state = {"a.b": torch.ones(3), "a": {"b": torch.zeros(3)}}
    with pytest.raises(ValueError, match=re.escape("got the name 'a.b' for both")):
        to_dcp(tmp_path / "one", state)


def exchange(mesh, folder):
    """Write and read shards on each rank of a mesh, in exchange with torch's DTensors."""
    state, rank, group = train_state(3), mesh.get_local_rank(), mesh.get_group()
    shards = layouts(state, mesh.size())[rank]
    to_dcp(f"{folder}/ours", local(state, shards), mesh=mesh, layout=shards)
    got = from_dcp(f"{folder}/ours", blank(local(state, shards)), mesh=mesh, layout=shards)
    assert_same_bits(got, local(state, shards))
    w = torch.arange(10.0).reshape(5, 2)
    placed = distribute_tensor(w, mesh, [Rows(0)])
    given = {"params": {"w": placed}, "b": torch.ones(3)}
    torch_dcp.save(given, checkpoint_id=f"{folder}/theirs", process_group=group)
    like = {"params": {"w": torch.zeros_like(placed.to_local())}, "b": torch.zeros(3)}
    start = 3 * rank
    layout = {"['params']['w']": checkpoint.Shard((5, 2), start, len(placed.to_local()))}
    got = from_dcp(f"{folder}/theirs", like, mesh=mesh, layout=layout)
    assert_same_bits(got["params"]["w"], placed.to_local())
    with pytest.raises(CheckpointRankError if rank == 0 else ValueError, match="expected"):
        to_dcp(f"{folder}/none", {"w": w}, mesh=mesh, layout=layout if rank else {})
    with pytest.raises(CheckpointRankError, match=r"\['w'\]: expected the bytes of rank 0"):
        to_dcp(f"{folder}/none", {"w": w + rank}, mesh=mesh)
    found = torch.zeros_like(w)
    to_dcp(f"{folder}/whole", {"w": w}, mesh=mesh)
    torch_dcp.load({"w": found}, checkpoint_id=f"{folder}/whole", process_group=group)
    assert_same_bits(found, w)


def test_dcp_checkpoints_of_shards_and_of_dtensors_load_as_each_other(tmp_path):
    with forked.ranks(2, exchange, str(tmp_path)) as pids:
        assert forked.exit_codes(pids, 60.0) == [0, 0]
    state = train_state(3)
    assert_same_bits(from_dcp(tmp_path / "ours", like=blank(state)), state)
    assert not (tmp_path / "none").exists()
