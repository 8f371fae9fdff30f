"""Choice of the ranks of a run: one process, or several that form a mesh."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.loop._one_rank import ALONE, OneRank

__all__ = ["check_mesh", "ranks_of"]


def check_mesh(mesh: Any) -> None:
    """Raise if the program runs on several ranks, but the trainer has no mesh.

    Raises:
        ValueError: there are several ranks and no mesh, so that every rank would write the same files.
    """
    distributed: Any = torch.distributed
    if mesh is None and distributed.is_available() and distributed.is_initialized():
        size = distributed.get_world_size()
        if size > 1:
            raise ValueError(
                f"mesh: expected the mesh of the {size} ranks on which this program runs, got None. "
                "Write Trainer(distributed.data_parallel(steps, mesh), ..., mesh=mesh)."
            )


def ranks_of(mesh: Any, step: Any = None) -> OneRank:
    """Return the object that coordinates the ranks of a run: `OneRank`, or `ManyRanks` for a mesh.

    Args:
        mesh: a mesh with one axis; `None`: this process alone.
        step: the training step; that of `distributed.fully_sharded` or `tensor_parallel` has the layout
            of its states, and the ranks that have rows of their own.

    Raises:
        ValueError: the mesh has several axes.
    """
    if mesh is None or mesh.size() == 1:
        return ALONE
    if mesh.ndim != 1:
        raise ValueError(
            "mesh: expected the mesh of all ranks, with one axis, got a mesh with the axes "
            f"{mesh.mesh_dim_names}. Pass the mesh of distributed.initialize to the Trainer, and the "
            "mesh with several axes to the steps only."
        )
    from ftrain.loop._many_ranks import ManyRanks  # noqa: PLC0415  # fails in a torch without torch.distributed

    return ManyRanks(mesh, getattr(step, "sharding", None), getattr(step, "batch", None))
