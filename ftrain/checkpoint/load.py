"""Loading of a saved state, bit for bit, or an error that names how the given state differs.

Read next: `restore.py`, for states that are meant to differ; `_read.py`, how files are read.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, get_args

import torch

from ftrain.checkpoint import _determinism, _structure, _tensors
from ftrain.checkpoint._read import OpenCheckpoint, open_checkpoint
from ftrain.checkpoint.errors import CheckpointMismatchError, DeterminismWarning
from ftrain.checkpoint.manifest import LeafRecord, Manifest
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
) -> tuple[T, Any]:
    """Load the saved state bit for bit, so that a run resumes as if it had never stopped.

    Every byte is hashed as it is read. Tensors get fresh memory with the strides they had, on the
    devices that `like` has them on; leaves that were one tensor are one again.

    Args:
        path: the checkpoint's directory.
        like: a state of the same structure, shapes, dtypes and strides, such as `init_state(0)`; its
            values do not matter.
        fingerprint: as given to `save`.
        on_change: what to do if the bits of the run may come out differently here: another torch,
            number of threads, processor, or fingerprint.

    Returns:
        `(state, metadata)`.

    Raises:
        CheckpointMismatchError: the saved state is not like `like`; the message lists where. To load
            what fits, use `restore`.
        CheckpointCorruptError: a byte differs from those written.
        CheckpointVersionError: it was written by a newer ftrain.
        CheckpointNotFoundError: the path does not exist.
        CheckpointReadError: a system call failed.

    Example:
        >>> import tempfile
        >>> from ftrain.checkpoint import save
        >>> path = tempfile.mkdtemp() + "/first"
        >>> _ = save(path, {"w": torch.arange(3.0)}, metadata={"epoch": 3})
        >>> load(path, like={"w": torch.zeros(3)})
        ({'w': tensor([0., 1., 2.])}, {'epoch': 3})
    """
    with open_checkpoint(path) as source:
        _check_same_kind(source, like)
        _check_determinism(source, fingerprint, on_change)
        leaves = _read_leaves(source, tree.leaves(like))
        return tree.unflatten(tree.structure(like), leaves), source.manifest.metadata


def verify(path: str | os.PathLike[str]) -> Manifest:
    """Read a whole checkpoint, verify every byte, and return its manifest.

    Raises:
        CheckpointCorruptError: a byte differs from those written.
        CheckpointVersionError: it was written by a newer ftrain.
        CheckpointNotFoundError: the path does not exist.
        CheckpointReadError: a system call failed.
    """
    with open_checkpoint(path) as source:
        source.read(lambda leaf: None)
        return source.manifest


def read_dense(source: OpenCheckpoint, wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Verify a checkpoint and return the tensors at the paths `wanted`, row-major in fresh CPU memory.

    Leaves that are one tensor are returned as one.
    """
    names = {leaf.path: leaf.alias or leaf.path for leaf in source.manifest.leaves}
    needed = {names[path] for path in wanted}
    dense = {
        leaf.path: torch.empty(leaf.shape, dtype=_tensors.by_name(leaf.dtype))
        for leaf in source.manifest.leaves
        if leaf.path in needed
    }

    def place(leaf: LeafRecord) -> memoryview | None:
        target = dense.get(leaf.path)
        return None if target is None else _tensors.memory_of(target)

    source.read(place)
    return {path: dense[names[path]] for path in wanted}


def _read_leaves(source: OpenCheckpoint, likes: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the tensors in order, in their saved layout, on the devices of the given tensors."""
    leaves = source.manifest.leaves
    dense = read_dense(source, [leaf.path for leaf in leaves])
    placed: dict[tuple[str, torch.device], torch.Tensor] = {}
    found = []
    for leaf, like in zip(leaves, likes, strict=True):
        device = torch.device("cpu") if like.is_meta else like.device
        key = (leaf.alias or leaf.path, device)
        if key not in placed:
            placed[key] = _placed(dense.pop(leaf.path), leaf, device)
        if like.requires_grad:  # of leaves that share a tensor, if any one does
            placed[key].requires_grad_()
        found.append(placed[key])
    return found


def _placed(dense: torch.Tensor, leaf: LeafRecord, device: torch.device) -> torch.Tensor:
    if dense.device == device and dense.stride() == leaf.strides:
        return dense
    laid_out = _tensors.empty(leaf.shape, leaf.strides, dense.dtype, device)
    _tensors.fill(laid_out, dense)
    return laid_out


def _check_same_kind(source: OpenCheckpoint, like: Any) -> None:
    """Raise if `like` differs from the checkpoint, before any tensor is allocated."""
    if inspect.isroutine(like):
        raise CheckpointMismatchError(
            "`like`: expected a state, got a function. Call it: "
            f"like={getattr(like, '__name__', 'init_state')}(0)"
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
    differences = [
        f"  {leaf.path or 'the root'}: {text}"
        for leaf, tensor in zip(manifest.leaves, likes, strict=True)
        if (text := _leaf_difference(leaf, tensor)) is not None
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
    "Resume with the state that was saved; to copy only tensors that fit, and report the others, use "
    "ftrain.checkpoint.restore."
)


def _leaf_difference(leaf: LeafRecord, like: Any) -> str | None:
    if not isinstance(like, torch.Tensor):
        return f"`like` has {a_or_an(type(like).__name__)} here, not a tensor"
    saved, wanted = f"{leaf.dtype}{list(leaf.shape)}", f"{_name(like.dtype)}{list(like.shape)}"
    if saved != wanted:
        return f"{saved} in the checkpoint, {wanted} in `like`"
    if not _tensors.same_strides(leaf.shape, leaf.strides, like.stride()):
        return f"strides {leaf.strides} in the checkpoint, {like.stride()} in `like`"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_determinism(
    source: OpenCheckpoint, fingerprint: Mapping[str, Any] | None, on_change: OnChange
) -> None:
    if on_change not in get_args(OnChange):
        raise ValueError(f"on_change: expected one of {get_args(OnChange)}, got {on_change!r}")
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
        f"resuming from {source.path} may not give the bits of an uninterrupted run:\n{listed}",
        DeterminismWarning,
        stacklevel=3,
    )
