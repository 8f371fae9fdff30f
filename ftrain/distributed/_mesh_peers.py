"""Peers of a mesh: the ranks that save and load one state together."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ftrain.checkpoint.errors import CheckpointRankError
from ftrain.core._torch_stores import default_store
from ftrain.distributed._peers import Peers

__all__ = ["peers_of"]


def peers_of(mesh: DeviceMesh, timeout: float, use: str = "") -> Peers:
    """Return an object through which all ranks of a mesh agree during one save, load or other call.

    Args:
        mesh: the ranks; a rank's number in messages is its position in the mesh.
        timeout: seconds that a rank waits for the others.
        use: a name that tells these calls from calls in other threads.

    Raises:
        ValueError: this process is not in the mesh, or the time-out is not positive.
        CheckpointRankError: the store of the process group is lost.
    """
    if not timeout > 0:
        raise ValueError(f"timeout: expected seconds > 0, got {timeout}. Write timeout=300.0.")
    ranks = mesh.mesh.flatten().tolist()
    own = dist.get_rank()
    if own not in ranks:
        raise ValueError(
            f"mesh: expected a mesh with rank {own}, this process, got ranks {ranks}. Call this on the "
            "ranks of the mesh only."
        )
    name = "-".join(map(str, ranks))
    try:
        return Peers(default_store(), ranks.index(own), len(ranks), name, timeout, use)
    except dist.DistError as error:
        action = "reach the store of the process group"
        raise CheckpointRankError(action, 0, "?", str(error)) from error
