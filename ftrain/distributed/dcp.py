"""Conversion of states to and from checkpoints of `torch.distributed.checkpoint` (DCP).

DCP hashes nothing, and its metadata are a pickle: `from_dcp` unpickles only the classes of DCP itself.
For checkpoints of ftrain's own see `save.py`. Read next: `_dcp_planners.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.device_mesh import DeviceMesh

from ftrain.checkpoint import _tensors
from ftrain.checkpoint._draft import collect
from ftrain.checkpoint.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CheckpointRankError,
)
from ftrain.checkpoint.shard import Layout, check_layout
from ftrain.core import tree
from ftrain.distributed import _checkpoint_pieces
from ftrain.distributed._dcp_planners import Entry, Loading, SafeReader, Saving
from ftrain.distributed._mesh_peers import peers_of
from ftrain.distributed._peers import Peers
from ftrain.distributed.sharding import Sharding, layout_of

__all__ = ["from_dcp", "to_dcp"]

T = TypeVar("T")


def to_dcp(
    directory: str | os.PathLike[str],
    state: Any,
    *,
    mesh: DeviceMesh | None = None,
    layout: Layout | Sharding | None = None,
    timeout: float = 600.0,
) -> None:
    """Write a state as a DCP checkpoint, which `torch.distributed.checkpoint.load` reads.

    The name of a leaf is its path with dots: `params.layer.weight` for `.params['layer.weight']`.
    Strides and ties are not stored. Unlike `save`, DCP writes to the final directory: the checkpoint is
    complete when its file `.metadata` exists.

    Args:
        directory: the directory to create; it may exist, if it is empty.
        state: a tree of tensors; with a mesh, the part of this rank.
        mesh: the ranks that write together, each of which must call this; `None`: this process alone. A
            mesh of several axes must have all ranks.
        layout: the rows that this rank holds of each leaf that it does not hold whole, by its path; or
            `sharding_of(steps)`.
        timeout: seconds that ranks wait for one another before writing. While they write, the time-out
            of the process group applies.

    Raises:
        CheckpointExistsError: the directory is not empty.
        CheckpointMismatchError: the states of the ranks differ.
        CheckpointRankError: a rank failed, ended or did not answer in time.
        TypeError, ValueError: as `checkpoint.save`; two leaves have one name; the layout does not fit.

    Example:
        >>> import tempfile
        >>> import torch.distributed.checkpoint as torch_dcp
        >>> directory = tempfile.mkdtemp()
        >>> to_dcp(directory, {"params": {"w": torch.arange(3.0)}})
        >>> found = {"params": {"w": torch.zeros(3)}}
        >>> torch_dcp.load(found, checkpoint_id=directory, no_dist=True)
        >>> found
        {'params': {'w': tensor([0., 1., 2.])}}
    """
    directory = os.path.abspath(directory)
    action, peers = f"write the DCP checkpoint {directory}", _peers(mesh, timeout)
    entries: list[Entry] = []

    def prepare() -> Any:
        content = collect(state, None, None, None, None)
        shards = layout_of(layout, state)
        leaves = _checkpoint_pieces.local_leaves(content, shards)
        entries.extend(_entries(state, shards, content.leaves))
        hashes = {
            leaf.path: hashlib.sha256(_tensors.row_major(leaf.tensor)).hexdigest()
            for leaf in leaves
            if leaf.whole and peers.size > 1
        }
        return {"state": _checkpoint_pieces.describe(content, leaves), "hashes": hashes}

    def check(found: Sequence[Any]) -> None:
        for rank, each in enumerate(found[1:], 1):
            _checkpoint_pieces.check_same(each["state"], found[0]["state"])
            for path, sha256 in found[0]["hashes"].items():
                if each["hashes"].get(path) != sha256:
                    raise CheckpointRankError(
                        action,
                        rank,
                        peers.host(rank),
                        f"the leaf at {path or 'the root'}: expected the bytes of rank 0, as both ranks "
                        "hold the whole leaf, got others",
                    )
        if os.path.lexists(directory) and (not os.path.isdir(directory) or os.listdir(directory)):
            raise CheckpointExistsError(
                f"{directory}: expected an unused path or an empty directory, got a path in use. "
                "Write to another directory."
            )

    peers.agree(action, prepare, check)
    with _translated(action, peers):
        state_dict_saver.save(
            {entry.name: entry.tensor for entry in entries},
            storage_writer=FileSystemWriter(directory, overwrite=False),
            planner=Saving(entries),
            **_where(mesh, peers),
        )


def from_dcp(
    directory: str | os.PathLike[str],
    like: T,
    *,
    mesh: DeviceMesh | None = None,
    layout: Layout | Sharding | None = None,
    strict: bool = True,
    timeout: float = 600.0,
) -> T:
    """Return the state in a DCP checkpoint, written by `to_dcp` or by another program.

    Args:
        directory: the directory of the checkpoint, of any number of ranks.
        like: a state of the same names, shapes and dtypes; with a mesh, the part of this rank. Its
            strides and devices are those of the result; leaves that are one tensor become several.
        mesh: the ranks that read together, as for `to_dcp`.
        layout: the rows that this rank holds of each leaf that it does not hold whole, by its path; or
            `sharding_of(steps)`.
        strict: False: entries of the checkpoint that `like` lacks are ignored.
        timeout: as for `to_dcp`.

    Returns:
        The state.

    Raises:
        CheckpointNotFoundError: the directory has no DCP checkpoint.
        CheckpointMismatchError: a name is missing or unknown, or has another shape or dtype.
        CheckpointCorruptError: the metadata are not metadata of DCP.
        CheckpointRankError: another rank failed.
        ValueError: two leaves of `like` have one name; the layout does not fit.

    Example:
        >>> import tempfile
        >>> directory = tempfile.mkdtemp()
        >>> to_dcp(directory, {"w": torch.arange(3.0)})
        >>> from_dcp(directory, like={"w": torch.zeros(3)})
        {'w': tensor([0., 1., 2.])}
    """
    directory = os.path.abspath(directory)
    action, peers = f"read the DCP checkpoint {directory}", _peers(mesh, timeout)
    entries: list[Entry] = []

    def prepare() -> None:
        likes, shards = tree.leaves(like), layout_of(layout, like)
        rows = [shards[path].rows if path in shards else None for path in tree.paths(like)]
        shapes = [
            x.shape if n is None else (n, *x.shape[1:]) for x, n in zip(likes, rows, strict=True)
        ]
        dense = [torch.empty(shape, dtype=x.dtype) for x, shape in zip(likes, shapes, strict=True)]
        check_layout(like, shards)
        entries.extend(_entries(like, shards, dense))
        if not os.path.isfile(os.path.join(directory, ".metadata")):
            raise CheckpointNotFoundError(
                f"{directory}: expected a DCP checkpoint, with a file .metadata, got none. "
                "Check the path."
            )

    peers.agree(action, prepare, lambda _: None)
    with _translated(action, peers):
        state_dict_loader.load(
            {entry.name: entry.tensor for entry in entries},
            storage_reader=SafeReader(directory),
            planner=Loading(entries, directory, strict),
            **_where(mesh, peers),
        )
    leaves = [_placed(entry.tensor, x) for entry, x in zip(entries, tree.leaves(like), strict=True)]
    found: T = tree.unflatten(tree.structure(like), leaves)
    return found


def _placed(dense: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Copy a tensor into a new one with the layout and device of `like`; padding rows are zeros."""
    device = torch.device("cpu") if like.is_meta else like.device
    new = _tensors.empty(like.shape, like.stride(), like.dtype, device)
    if like.shape == dense.shape:
        _tensors.fill(new, dense)
    else:
        new[len(dense) :].zero_()
        _tensors.fill(new[: len(dense)], dense)
    return new.requires_grad_(like.requires_grad)


def _entries(state: Any, layout: Layout, tensors: Sequence[torch.Tensor]) -> list[Entry]:
    """Return the DCP entry of each leaf of a state; `tensors` has this rank's rows of the leaves.

    Raises:
        ValueError: two leaves have one name.
    """
    found: list[Entry] = []
    seen: dict[str, str] = {}
    accessors = tree.structure(state).accessors()
    for path, accessor, tensor in zip(tree.paths(state), accessors, tensors, strict=True):
        parts = tuple(_part(entry) for entry in accessor)
        name = ".".join(parts)
        if name in seen:
            raise ValueError(
                f"state: expected leaves with different DCP names, got the name {name!r} for both "
                f"{seen[name]} and {path}. Rename a key."
            )
        seen[name] = path
        shard = layout.get(path)
        if shard is None:
            found.append(Entry(name, parts, tensor, tuple(tensor.shape), 0))
        else:
            found.append(Entry(name, parts, tensor[: shard.rows], shard.shape, shard.start))
    return found


def _part(entry: Any) -> str:
    name = getattr(entry, "field", None) or getattr(entry, "name", None) or entry.entry
    return str(name)


def _peers(mesh: DeviceMesh | None, timeout: float) -> Peers:
    if mesh is None:
        return Peers(None, 0, 1, "", timeout)
    if mesh.ndim > 1 and mesh.size() != dist.get_world_size():
        raise ValueError(
            f"mesh: expected a mesh with one axis, or with all {dist.get_world_size()} ranks, got "
            f"{mesh.ndim} axes and {mesh.size()} ranks. Pass a mesh with one axis."
        )
    return peers_of(mesh, timeout, "dcp")


def _where(mesh: DeviceMesh | None, peers: Peers) -> dict[str, Any]:
    if mesh is None or peers.size == 1:
        return {"no_dist": True}
    return {"process_group": mesh.get_group() if mesh.ndim == 1 else None}


@contextlib.contextmanager
def _translated(action: str, peers: Peers) -> Iterator[None]:
    """Convert DCP's `CheckpointException` in a `with` block to the checkpoint errors of ftrain."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
    except CheckpointException as failed:
        rank, (error, _) = sorted(failed.failures.items())[0]
        if isinstance(error, CheckpointError) and (rank == peers.rank or peers.size == 1):
            raise error from None
        if peers.size == 1:
            raise CheckpointCorruptError(
                f"could not {action}: {type(error).__name__}: {error}. Restore the checkpoint from "
                "a copy."
            ) from error
        cause = f"{type(error).__name__}: {error}"
        raise CheckpointRankError(action, rank, peers.host(rank), cause) from error
