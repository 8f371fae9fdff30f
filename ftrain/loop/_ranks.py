"""Choice of the ranks of a run: one process, or several that form a mesh."""

from __future__ import annotations

from typing import Any

from ftrain.loop._one_rank import ALONE, OneRank

__all__ = ["ranks_of"]


def ranks_of(mesh: Any, step: Any = None) -> OneRank:
    """Return the object that coordinates the ranks of a run: `OneRank`, or `ManyRanks` for a mesh.

    Args:
        mesh: a mesh with one axis; `None`: this process alone.
        step: the training step; that of `distributed.fully_sharded` has the layout of its states.

    Raises:
        ValueError: the ranks take the same rows of each batch.
    """
    if mesh is None or mesh.size() == 1:
        return ALONE
    if getattr(step, "shares_rows", False):
        raise ValueError(
            "steps: expected steps of distributed.data_parallel or fully_sharded, whose ranks have rows "
            "of their own, got steps of tensor_parallel. Call them in a loop of your own."
        )
    from ftrain.loop._many_ranks import ManyRanks  # noqa: PLC0415  # fails in a torch without torch.distributed

    return ManyRanks(mesh, getattr(step, "sharding", None))
