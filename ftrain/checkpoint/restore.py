"""Copying of matching tensors into a state: for pretrained weights, a new head, a new optimizer.

Read next: `load.py`, to resume exactly; `loop/_resume.py`, for the checkpoint from which a run
resumes; `state_dicts.py`, for weights of other programs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from ftrain.checkpoint import _tensors
from ftrain.checkpoint._read import open_checkpoint
from ftrain.checkpoint.load import read_dense
from ftrain.core import tree
from ftrain.core._words import a_or_an

__all__ = ["Report", "restore"]

T = TypeVar("T")
_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Report:
    """Outcome of a restore for each leaf of the state, by the leaf's path; prints as a list.

    Attributes:
        loaded: leaves that were copied from the source.
        converted: the loaded leaves whose floating dtype changed, with both dtypes.
        missing: leaves that the source lacks; they keep the values of `like`.
        different: leaves of another shape or kind in the source, with the reason; they keep the values
            of `like`.
        left: leaves that `where` excludes.
        unused: paths of the source that no leaf of `like` maps to.

    Example:
        >>> Report(("['w']",), missing=("['b']",)).complete
        False
    """

    loaded: tuple[str, ...]
    converted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    missing: tuple[str, ...] = ()
    different: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True if the source had a matching tensor for every requested leaf."""
        return not self.missing and not self.different

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for title, entries in (
            ("converted", self.converted),
            ("missing from the source", self.missing),
            ("different", self.different),
            ("left alone", self.left),
            ("unused from the source", self.unused),
        ):
            if entries:
                parts.append(f"{len(entries)} {title}:")
                reasons = entries if isinstance(entries, Mapping) else dict.fromkeys(entries, "")
                for path, reason in list(reasons.items())[:_LISTED]:
                    parts.append(f"  {path or 'the root'}{': ' if reason else ''}{reason}")
                if len(entries) > _LISTED:
                    parts.append(f"  ... and {len(entries) - _LISTED} more")
        return "\n".join(parts)


def restore(
    source: str | os.PathLike[str] | Any,
    like: T,
    *,
    where: Callable[[str], str | None] | None = None,
) -> tuple[T, Report]:
    """Return the state `like` with all matching tensors copied from another state.

    A leaf is copied if the source has one of its shape at the same path; floating dtypes are
    converted. Every other leaf keeps the value of `like`, and the report names it.

    Args:
        source: the directory of a checkpoint, or a tree of tensors such as `read_state_dict` gives.
        like: the state, or a part of it, to start from.
        where: function from a leaf's path in `like` to its path in the source, or `None` to leave the
            leaf unchanged; default: the same path. Paths are as `tree.paths` writes them.

    Returns:
        `(state, report)`. No new tensor shares memory with the source.

    Raises:
        CheckpointNotFoundError, CheckpointCorruptError, CheckpointVersionError, CheckpointReadError: as
            for `load`.

    Example:
        >>> old = {"body": torch.ones(2), "head": torch.ones(10)}
        >>> new, report = restore(old, like={"body": torch.zeros(2), "head": torch.zeros(3)})
        >>> new
        {'body': tensor([1., 1.]), 'head': tensor([0., 0., 0.])}
        >>> print(report)
        1 tensors loaded
        1 different:
          ['head']: float32[10] in the source, float32[3] in `like`
    """
    paths, likes = tree.paths(like), tree.leaves(like)
    asked = {path: path if where is None else where(path) for path in paths}
    if isinstance(source, (str, os.PathLike)):
        with open_checkpoint(source) as checkpoint:
            described = {
                leaf.path: torch.empty(
                    leaf.shape, dtype=_tensors.by_name(leaf.dtype), device="meta"
                )
                for leaf in checkpoint.manifest.leaves
            }
            report = _compare(asked, dict(zip(paths, likes, strict=True)), described)
            found = read_dense(checkpoint, {str(asked[path]) for path in report.loaded})
    else:
        found = dict(zip(tree.paths(source), tree.leaves(source), strict=True))
        report = _compare(asked, dict(zip(paths, likes, strict=True)), found)
    loaded = set(report.loaded)
    leaves = [
        _like(found[str(asked[path])], leaf) if path in loaded else leaf
        for path, leaf in zip(paths, likes, strict=True)
    ]
    return tree.unflatten(tree.structure(like), leaves), report


def _compare(
    asked: Mapping[str, str | None], likes: Mapping[str, Any], source: Mapping[str, Any]
) -> Report:
    loaded, converted, missing, different, left = [], {}, [], {}, []
    for path, origin in asked.items():
        if origin is None:
            left.append(path)
        elif origin not in source:
            missing.append(path)
        elif (reason := _difference(source[origin], likes[path])) is not None:
            different[path] = reason
        else:
            loaded.append(path)
            if source[origin].dtype != likes[path].dtype:
                converted[path] = f"{_kind(source[origin])} to {_kind(likes[path])}"
    wanted = set(asked.values())
    unused = tuple(path for path in source if path not in wanted)
    return Report(tuple(loaded), converted, tuple(missing), different, tuple(left), unused)


def _difference(saved: Any, like: Any) -> str | None:
    """Return the reason why a saved leaf cannot replace the leaf `like`, or `None` if it can."""
    if isinstance(saved, torch.Tensor) and isinstance(like, torch.Tensor):
        floating = saved.is_floating_point() and like.is_floating_point()
        if saved.shape == like.shape and (saved.dtype == like.dtype or floating):
            return None
    return f"{_kind(saved)} in the source, {_kind(like)} in `like`"


def _kind(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return a_or_an(type(value).__name__)
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _like(found: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a copy of `found` with the dtype, layout and device of `like`."""
    device = torch.device("cpu") if like.is_meta else like.device
    new = _tensors.empty(like.shape, like.stride(), like.dtype, device)
    _tensors.fill(new, found.detach())
    return new.requires_grad_(like.requires_grad)
