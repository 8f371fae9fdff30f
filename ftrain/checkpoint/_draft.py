"""Content of a checkpoint, prepared from a state before any file is written.

`collect` runs in the calling thread: it collects the tensors, and copies everything else that may
change later. `draft`, which determines paths, aliases and files, may run in the thread of an
asynchronous save.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, SupportsIndex

import torch

from ftrain.checkpoint import _determinism, _json, _structure, _tensors
from ftrain.checkpoint._host_copies import Events, PinnedMemory, to_host
from ftrain.checkpoint.manifest import LeafRecord, Manifest
from ftrain.core import tree

__all__ = ["MOST_IN_A_FILE", "Collected", "Draft", "collect", "content_of", "draft", "step_number"]

MOST_IN_A_FILE = 4 << 30


@dataclasses.dataclass(frozen=True)
class Collected:
    """Tensors of a state, and copies of all other content of its checkpoint.

    Attributes:
        leaves: the tensors.
        structure: the containers around them.
        rest: the fields of the manifest that do not describe the tensors.
    """

    leaves: list[torch.Tensor]
    structure: tree.TreeDef
    rest: dict[str, Any]

    def copied(self, memory: PinnedMemory | None = None) -> Collected:
        """Return this content with copies of the tensors, so that the state may be donated.

        Tensors on a device are copied to the host, so that the writing thread waits for no stream.
        Copies keep layouts and aliases.
        """
        return self._with(
            lambda leaves: [
                _copy(leaf) if leaf.is_cpu else on_host
                for leaf, on_host in zip(
                    leaves, to_host(leaves, memory or PinnedMemory()), strict=True
                )
            ]
        )

    def on_host(self, memory: PinnedMemory | None = None, after: Events | None = None) -> Collected:
        """Return this content with all tensors on the host; tensors already on the host are not copied.

        Args:
            memory: receives the copies.
            after: the result of `computed` in the thread that computed the tensors; `None` if this
                thread computed them.
        """
        if all(leaf.is_cpu for leaf in self.leaves):
            return self
        return self._with(lambda leaves: to_host(leaves, memory or PinnedMemory(), after))

    def _with(self, copy: Callable[[list[torch.Tensor]], list[torch.Tensor]]) -> Collected:
        """Return this content with copied tensors; a tensor that occurs several times is copied once."""
        index: dict[Any, int] = {}
        places = [index.setdefault(content_of(leaf), len(index)) for leaf in self.leaves]
        distinct = dict(zip(places, self.leaves, strict=True))
        copies = copy([distinct[i] for i in range(len(index))])
        return dataclasses.replace(self, leaves=[copies[i] for i in places])


@dataclasses.dataclass(frozen=True)
class Draft:
    """Content of a checkpoint before its files are written.

    Attributes:
        manifest: the manifest without sizes and hashes of the files.
        files: for each file name the tensors that go into it, by path.
    """

    manifest: Manifest
    files: dict[str, dict[str, torch.Tensor]]


def collect(
    state: Any,
    metadata: Any,
    step: int | None,
    metrics: Mapping[str, Any] | None,
    fingerprint: Mapping[str, Any] | None,
) -> Collected:
    """Check a state and its metadata; return the tensors, and copies of everything else to save.

    Raises:
        TypeError: a leaf is not a tensor, or the metadata are not JSON; the message names the path.
        ValueError: a tensor cannot be stored (sparse, quantised, without values).
    """
    leaves, structure = tree.flatten(state)
    for index, leaf in enumerate(leaves):
        if not _is_plain(leaf):
            _refuse(tree.paths(state)[index] or "the root", leaf)
    if not isinstance(metrics, (Mapping, NoneType)):
        raise TypeError(
            f"metrics: expected a dict of names and numbers, got {type(metrics).__name__}. Write "
            "metrics={'loss': 0.5}."
        )
    rest = {
        "metadata": _checked(metadata, "metadata"),
        "step": None if step is None else step_number(step),
        "metrics": {str(name): _number(name, value) for name, value in (metrics or {}).items()},
        "determinism": _determinism.fingerprint(fingerprint),
        "versions": _determinism.versions(),
    }
    return Collected(leaves, structure, rest)


def draft(collected: Collected) -> Draft:
    """Return the manifest, without sizes and hashes of files, and the tensors of each file.

    Raises:
        ValueError: two leaves have one path, or containers are nested too deep.
    """
    state = tree.unflatten(collected.structure, collected.leaves)
    paths = tree.paths(state)
    if len(set(paths)) != len(paths):
        raise ValueError(
            "state: expected a unique path for each leaf, got two equal paths, because two keys of a "
            "dict have the same text. Rename one of them."
        )
    described: list[LeafRecord] = []
    first: dict[Any, LeafRecord] = {}
    files: dict[str, dict[str, torch.Tensor]] = {}
    for path, (tensor, file) in zip(paths, _spread(collected.leaves), strict=True):
        content = content_of(tensor)
        original = first.get(content) if tensor.numel() else None
        leaf = LeafRecord(
            path=path,
            dtype=str(_tensors.name_of(tensor.dtype)),
            shape=tuple(tensor.shape),
            strides=tuple(tensor.stride()),
            file=original.file if original else file,
            alias=original.path if original else None,
        )
        if original is None:
            first[content] = leaf
            files.setdefault(file, {})[path] = tensor
        described.append(leaf)
    structure = _structure.describe(state)
    return Draft(
        Manifest(leaves=tuple(described), files=(), structure=structure, **collected.rest),
        # The widest elements first, so that every tensor in the file is aligned to its element size.
        {
            file: dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
            for file, tensors in files.items()
        },
    )


def step_number(step: SupportsIndex) -> int:
    """Return a step as an int; raise unless it is a valid number for a checkpoint."""
    try:
        number = operator.index(step)
    except TypeError:
        raise TypeError(f"step: expected an integer, got {step!r}. Write int(step).") from None
    if not 0 <= number < 10**12:
        raise ValueError(
            f"step: expected an integer from 0 to 10**12 - 1, got {number}. Count steps from 0."
        )
    return number


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(
            f"metrics[{name!r}]: expected a number, got {ascii(value)[:80]}. Write float(value)."
        ) from None


def _spread(leaves: list[torch.Tensor]) -> list[tuple[torch.Tensor, str]]:
    """Assign leaves to files, in order and up to a few gigabytes per file; return (leaf, file) pairs."""
    found, index, filled = [], 0, 0
    for leaf in leaves:
        size = leaf.numel() * leaf.element_size()
        if filled and filled + size > MOST_IN_A_FILE:
            index, filled = index + 1, 0
        filled += size
        found.append((leaf, f"tensors-{index:05d}.safetensors"))
    return found


def _is_plain(leaf: Any) -> bool:
    return (
        isinstance(leaf, torch.Tensor)
        and leaf.layout == torch.strided
        and not leaf.is_nested
        and not leaf.is_meta
        and _tensors.name_of(leaf.dtype) is not None
        and _has_memory(leaf)
    )


def _has_memory(leaf: torch.Tensor) -> bool:
    try:
        return leaf.data_ptr() != 0 or leaf.numel() == 0
    except (RuntimeError, ValueError):  # of torch.func, of lazy modules
        return False


def _refuse(where: str, leaf: Any) -> None:
    if not isinstance(leaf, torch.Tensor):
        raise TypeError(
            f"the leaf at {where}: expected a tensor, got {type(leaf).__name__} {str(leaf)[:80]!r}. "
            "Write torch.tensor(...) for a number, or put it in `metadata`."
        )
    if leaf.layout != torch.strided or leaf.is_nested:
        raise ValueError(
            f"the leaf at {where}: expected a dense tensor, got layout {leaf.layout}. "
            "Write leaf.to_dense(), or save its parts."
        )
    if leaf.is_meta:
        raise ValueError(
            f"the leaf at {where}: expected values to save, got a tensor on the meta device. "
            "Create the state on another device."
        )
    if _tensors.name_of(leaf.dtype) is None:
        raise ValueError(
            f"the leaf at {where}: expected a dtype that safetensors supports, got {leaf.dtype}. "
            "Convert it first, for example by leaf.dequantize()."
        )
    raise ValueError(
        f"the leaf at {where}: expected a tensor with memory, got {type(leaf).__name__} without "
        "memory: it is being vmapped, differentiated or traced, or its storage was freed, or it is "
        "an uninitialized parameter of a lazy module. Save outside of transformed functions, and "
        "after the module's first call."
    )


def content_of(tensor: torch.Tensor) -> Any:
    """Return a key, equal for two tensors only if they have the same memory, layout and values."""
    memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    return (*memory, tensor.is_conj(), tensor.is_neg())


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor with the same strides."""
    with torch.no_grad():
        copy = tensor.clone()
        if copy.stride() == tensor.stride():
            return copy
        laid_out = _tensors.empty(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        _tensors.fill(laid_out, copy)
        return laid_out


def _checked(value: Any, where: str) -> Any:
    """Return user metadata as `load` returns them (tuples as lists); raise if JSON cannot hold them."""
    return _json.decode_floats(_json.encode_user(value, where))
