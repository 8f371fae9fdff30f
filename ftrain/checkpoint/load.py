"""Loading of a saved state, bit for bit; an error lists the differences from the expected state.

Read next: `restore.py`, for states that are meant to differ; `_read.py`, which reads the files.
"""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, get_args

import torch

from ftrain.checkpoint import _determinism, _structure, _tensors
from ftrain.checkpoint._read import OpenCheckpoint, Place, Target, open_checkpoint
from ftrain.checkpoint.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    DeterminismWarning,
)
from ftrain.checkpoint.manifest import LeafRecord, Manifest
from ftrain.checkpoint.shard import Layout, Shard, check_layout, full_strides
from ftrain.core import tree
from ftrain.core._words import a_or_an

__all__ = ["load", "verify"]

T = TypeVar("T")
OnChange = Literal["warn", "raise", "ignore"]

_LISTED = 8


def load(
    path: str | os.PathLike[str],
    like: T,
    *,
    fingerprint: Mapping[str, Any] | None = None,
    on_change: OnChange = "warn",
    layout: Layout | None = None,
) -> tuple[T, Any]:
    """Load the saved state bit for bit, so that a run resumes as if it had never stopped.

    Every byte is hashed as it is read. Tensors are loaded into fresh memory with their saved strides, on
    the devices of `like`; leaves that were one tensor are one tensor again.

    Args:
        path: the checkpoint's directory.
        like: a state of the same structure, shapes, dtypes and strides, such as `init_state(0)`; its
            values do not matter.
        fingerprint: as given to `save`.
        on_change: "warn", "raise" or "ignore" if the run's bits may differ in this process, because it
            has another torch, number of threads, processor or fingerprint.
        layout: the rows to load of each leaf that is not loaded whole, by its path; such a leaf has the
            shape and strides of `like`, and zeros in its padding. In a checkpoint of several ranks, only
            the pieces with these rows are read; in one of a single process, every file is read.

    Returns:
        `(state, metadata)`.

    Raises:
        CheckpointMismatchError: the saved state differs in structure from `like`; the message lists the
            differences. To load only the leaves that match, use `restore`.
        CheckpointCorruptError: a byte differs from those written.
        CheckpointVersionError: the checkpoint was written by a newer ftrain.
        CheckpointNotFoundError: the path does not exist.
        CheckpointReadError: a system call failed.
        ValueError: the layout does not match `like`.

    Example:
        >>> import tempfile
        >>> from ftrain.checkpoint import save
        >>> path = tempfile.mkdtemp() + "/first"
        >>> _ = save(path, {"w": torch.arange(3.0)}, metadata={"epoch": 3})
        >>> load(path, like={"w": torch.zeros(3)})
        ({'w': tensor([0., 1., 2.])}, {'epoch': 3})
        >>> load(path, {"w": torch.zeros(2)}, layout={"['w']": Shard((3,), start=1, rows=2)})[0]
        {'w': tensor([1., 2.])}
    """
    state, manifest = load_with_manifest(path, like, fingerprint, on_change, layout or {})
    return state, manifest.metadata


def load_with_manifest(
    path: str | os.PathLike[str],
    like: T,
    fingerprint: Mapping[str, Any] | None,
    on_change: OnChange,
    layout: Layout,
) -> tuple[T, Manifest]:
    """Load the saved state bit for bit; return it with the checkpoint's manifest."""
    with open_checkpoint(path) as source:
        _check_same_kind(source, like, layout)
        _check_determinism(source, fingerprint, on_change)
        leaves = _read_leaves(source, tree.leaves(like), layout)
        return tree.unflatten(tree.structure(like), leaves), source.manifest


def verify(path: str | os.PathLike[str]) -> Manifest:
    """Read a whole checkpoint, verify every byte, and return its manifest.

    Raises:
        CheckpointCorruptError: a byte differs from those written.
        CheckpointVersionError: the checkpoint was written by a newer ftrain.
        CheckpointNotFoundError: the path does not exist.
        CheckpointReadError: a system call failed.
    """
    with open_checkpoint(path) as source:
        source.read(lambda leaf: None)
        return source.manifest


def verifies(path: str | os.PathLike[str]) -> bool:
    """Return True if a checkpoint exists and passes verification."""
    try:
        verify(path)
    except (CheckpointCorruptError, CheckpointNotFoundError):
        return False
    return True


def read_dense(source: OpenCheckpoint, wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Verify a checkpoint; return its tensors at the paths `wanted`, row-major in fresh CPU memory.

    Leaves that are one tensor are returned as one tensor.
    """
    names = {leaf.path: leaf.alias or leaf.path for leaf in source.manifest.leaves}
    needed = {names[path] for path in wanted}
    leaves = [leaf for leaf in source.manifest.leaves if leaf.path in needed]
    source.check_sizes(leaves)
    dense = {
        leaf.path: torch.empty(leaf.shape, dtype=_tensors.by_name(leaf.dtype)) for leaf in leaves
    }

    def place(leaf: LeafRecord) -> Target | None:
        target = dense.get(leaf.path)
        return None if target is None else Target(_tensors.memory_of(target))

    source.read(place)
    return {path: dense[names[path]] for path in wanted}


def _read_leaves(
    source: OpenCheckpoint, likes: list[torch.Tensor], layout: Layout
) -> list[torch.Tensor]:
    """Return a checkpoint's tensors in order, in their saved layout, on the devices of `likes`."""
    leaves = source.manifest.leaves
    shards = [layout.get(leaf.path) for leaf in leaves]
    if not layout:  # else a rank reads some pieces, of tensors that `like` has
        source.check_sizes(leaf for leaf in leaves if leaf.alias is None)
    dense = _read_rows(
        source,
        {(leaf.alias or leaf.path, shard) for leaf, shard in zip(leaves, shards, strict=True)},
    )
    placed: dict[tuple[str, Shard | None, torch.device], torch.Tensor] = {}
    found = []
    for leaf, shard, like in zip(leaves, shards, likes, strict=True):
        device = torch.device("cpu") if like.is_meta else like.device
        key = (leaf.alias or leaf.path, shard, device)
        if key not in placed:
            rows = dense.pop(key[:2]) if device.type == "cpu" else dense[key[:2]]
            placed[key] = _placed(rows, leaf, shard, like, device)
        if like.requires_grad:  # one of the leaves that share a tensor is enough
            placed[key].requires_grad_()
        found.append(placed[key])
    return found


def _read_rows(
    source: OpenCheckpoint, wanted: Collection[tuple[str, Shard | None]]
) -> dict[tuple[str, Shard | None], torch.Tensor]:
    """Verify and return rows of leaves (`None`: all rows), row-major in fresh CPU memory."""
    records = {leaf.path: leaf for leaf in source.manifest.leaves}
    found, left = {}, list(wanted)
    while left:  # again only if leaves that are one tensor are wanted in different rows
        now = dict(left)
        left = [(path, shard) for path, shard in left if now[path] != shard]
        targets = {}
        for path, shard in now.items():
            leaf = records[path]
            shape = leaf.shape if shard is None else (shard.rows, *leaf.shape[1:])
            dense = torch.empty(shape, dtype=_tensors.by_name(leaf.dtype))
            row = math.prod(leaf.shape[1:]) * dense.element_size()
            found[path, shard] = dense
            begin = 0 if shard is None else shard.start * row
            targets[path] = Target(_tensors.memory_of(dense), begin)
        read = source.read if all(shard is None for shard in now.values()) else source.read_pieces
        read(_place(targets))
    return found


def _place(targets: Mapping[str, Target]) -> Place:
    return lambda leaf: targets.get(leaf.path)


def _placed(
    dense: torch.Tensor,
    leaf: LeafRecord,
    shard: Shard | None,
    like: torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    shape, strides = (leaf.shape, leaf.strides) if shard is None else (like.shape, like.stride())
    if dense.device == device and dense.shape == shape and dense.stride() == strides:
        return dense
    laid_out = _tensors.empty(shape, strides, dense.dtype, device)
    if shard is None:
        _tensors.fill(laid_out, dense)
    else:
        laid_out[shard.rows :].zero_()
        _tensors.fill(laid_out[: shard.rows], dense)
    return laid_out


def _check_same_kind(source: OpenCheckpoint, like: Any, layout: Layout) -> None:
    """Raise if the state `like` differs in structure from a checkpoint; allocate no tensor."""
    if inspect.isroutine(like):
        raise CheckpointMismatchError(
            "`like`: expected a state, got a function. Call it: "
            f"like={getattr(like, '__name__', 'init_state')}(0)."
        )
    manifest = source.manifest
    difference = _structure.first_difference(manifest.structure, _structure.describe(like))
    if difference is not None:
        raise CheckpointMismatchError(
            f"{source.path} holds a state of another structure: {difference}. {_REMEDY}"
        )
    paths, likes = tree.paths(like), tree.leaves(like)
    if [leaf.path for leaf in manifest.leaves] != paths:
        raise CheckpointMismatchError(
            f"{source.path} lists its leaves in another order than `like` does. {_REMEDY}"
        )
    if layout:
        check_layout(like, layout)
    differences = [
        f"  {leaf.path or 'the root'}: {text}"
        for leaf, tensor in zip(manifest.leaves, likes, strict=True)
        if (text := _leaf_difference(leaf, tensor, layout.get(leaf.path))) is not None
    ]
    if differences:
        more = len(differences) - _LISTED
        listed = "\n".join(differences[:_LISTED]) + (f"\n  ... and {more} more" if more > 0 else "")
        raise CheckpointMismatchError(
            f"{source.path} holds another state than `like`:\n{listed}\n{_REMEDY}"
        )
    if manifest.prng != _determinism.PRNG:
        raise CheckpointMismatchError(
            f"{source.path} was saved by a run with the random generator {manifest.prng!r}; this ftrain "
            f"uses {_determinism.PRNG!r}, so the resumed run would draw other random numbers. {_REMEDY}"
        )


_REMEDY = (
    "Pass a state with the structure of the saved one; to copy only the tensors that match, use "
    "ftrain.checkpoint.restore."
)


def _leaf_difference(leaf: LeafRecord, like: Any, shard: Shard | None) -> str | None:
    if not isinstance(like, torch.Tensor):
        return f"`like` has {a_or_an(type(like).__name__)} here, not a tensor"
    shape = like.shape if shard is None else shard.shape
    saved, wanted = f"{leaf.dtype}{list(leaf.shape)}", f"{_name(like.dtype)}{list(shape)}"
    if saved != wanted:
        return f"{saved} in the checkpoint, {wanted} in `like`"
    strides = like.stride()
    if shard is not None:
        full = full_strides(like, shard) if shard.rows else leaf.strides
        if full is None:
            return f"strides {strides} in `like`, whose rows interleave in memory"
        strides = leaf.strides[:1] + full[1:] if shard.rows == 1 else full
    if not _tensors.same_strides(leaf.shape, leaf.strides, strides):
        return f"strides {leaf.strides} in the checkpoint, {strides} in `like`"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_determinism(
    source: OpenCheckpoint, fingerprint: Mapping[str, Any] | None, on_change: OnChange
) -> None:
    if on_change not in get_args(OnChange):
        raise ValueError(
            f"on_change: expected one of {get_args(OnChange)}, got {on_change!r}. Write "
            "on_change='warn'."
        )
    if on_change == "ignore":
        return
    now = _determinism.fingerprint(fingerprint)
    changed = _determinism.changes(source.manifest.determinism, now)
    if not changed:
        return
    listed = "\n".join(f"  {change}" for change in changed)
    if on_change == "raise":
        raise CheckpointMismatchError(
            f"{source.path} was saved under different settings; the resumed run would not be "
            f"bit-identical:\n{listed}\nSet them to the saved values, or load with on_change='warn'."
        )
    warnings.warn(
        f"resuming from {source.path} may not give the bits of an uninterrupted run:\n{listed}\n"
        "Set them to the saved values, or load with on_change='ignore'.",
        DeterminismWarning,
        stacklevel=4,
    )
