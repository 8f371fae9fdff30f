"""Loading of a checkpoint by several ranks: each rank reads its rows, and all succeed or all raise.

Read next: `save.py`; `ftrain/checkpoint/load.py`, which reads on each rank.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch.distributed.device_mesh import DeviceMesh

from ftrain.checkpoint.errors import CheckpointMismatchError
from ftrain.checkpoint.load import OnChange, load_with_manifest
from ftrain.checkpoint.manifest import Manifest
from ftrain.checkpoint.shard import Layout
from ftrain.distributed._mesh_peers import peers_of
from ftrain.distributed._peers import Peers
from ftrain.distributed.sharding import Sharding, layout_of

__all__ = ["load"]

T = TypeVar("T")


def load(
    path: str | os.PathLike[str],
    like: T,
    mesh: DeviceMesh,
    *,
    layout: Layout | Sharding | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    on_change: OnChange = "warn",
    timeout: float = 600.0,
) -> tuple[T, Any]:
    """Load this rank's rows of a state, bit for bit, from a checkpoint of any number of ranks.

    Every rank of the mesh must call this. From a checkpoint that several ranks wrote, a rank reads the
    pieces that hold its rows, each up to 64 MiB or one row. From a checkpoint that one process wrote, a
    rank reads every file, because only whole files can be verified, and keeps its rows.

    Args:
        path: the checkpoint's directory.
        like: this rank's state, of the same structure, shapes, dtypes and strides; its values do not
            matter.
        mesh: the ranks.
        layout: the rows that this rank holds of each leaf that it does not hold whole, by its path; or
            `sharding_of(steps)`, if the state is that of sharded steps.
        fingerprint: as given to `save`.
        on_change: as for `checkpoint.load`.
        timeout: seconds that reading may take on the slowest rank.

    Returns:
        `(state, metadata)`.

    Raises:
        CheckpointRankError: another rank failed, ended or did not answer in time.
        CheckpointMismatchError: the saved state and `like` differ in structure, shapes or dtypes, or the
            ranks read different checkpoints.
        CheckpointCorruptError, CheckpointNotFoundError, CheckpointVersionError, CheckpointReadError,
            ValueError: as `checkpoint.load`, on the rank where it happened.

    Example:
        >>> import tempfile, torch, torch.distributed as dist
        >>> from torch.distributed.device_mesh import DeviceMesh
        >>> from ftrain import checkpoint
        >>> path = tempfile.mkdtemp() + "/first"
        >>> _ = checkpoint.save(path, {"w": torch.arange(3.0)})
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> shard = checkpoint.Shard((3,), start=0, rows=3)
        >>> load(path, {"w": torch.zeros(4)}, DeviceMesh("cpu", [0]), layout={"['w']": shard})[0]
        {'w': tensor([0., 1., 2., 0.])}
        >>> dist.destroy_process_group()
    """
    peers = peers_of(mesh, timeout)
    state, manifest = read(path, like, layout, peers, fingerprint, on_change)
    return state, manifest.metadata


def read(
    path: str | os.PathLike[str],
    like: T,
    layout: Layout | Sharding | None,
    peers: Peers,
    fingerprint: Mapping[str, Any] | None = None,
    on_change: OnChange = "warn",
) -> tuple[T, Manifest]:
    """Load this rank's rows of a state; raise on every rank if a rank cannot load its rows."""
    path = os.path.abspath(path)
    found: list[tuple[T, Manifest]] = []

    def work() -> str:
        rows = layout_of(layout, like)
        found.append(load_with_manifest(path, like, fingerprint, on_change, rows))
        return found[0][1].digest

    peers.agree(f"load the checkpoint {path}", work, lambda digests: _check(digests, path))
    return found[0]


def _check(digests: Sequence[str], path: str) -> None:
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise CheckpointMismatchError(
                f"{path}: expected the checkpoint {digests[0]} on every rank, as on rank 0, got "
                f"{digest} on rank {rank}. Load the checkpoint again when no process replaces it, "
                "and from a file system that all ranks share."
            )
