"""Planners and a reader of `torch.distributed.checkpoint`, for leaves with rows on several ranks."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from ftrain.checkpoint.errors import CheckpointCorruptError, CheckpointMismatchError
from ftrain.core._words import a_or_an, dtype_and_shape

__all__ = ["Entry", "Loading", "SafeReader", "Saving"]

_LISTED = 8


class Entry(NamedTuple):
    """Leaf of a state, or some rows of a leaf, with its name in a DCP checkpoint.

    Attributes:
        name: the parts of its path, joined by dots.
        parts: the keys, fields and indices of its path.
        tensor: the rows.
        shape: the shape of the whole leaf.
        start: the index of the first row.
    """

    name: str
    parts: tuple[str, ...]
    tensor: torch.Tensor
    shape: tuple[int, ...]
    start: int

    @property
    def is_empty(self) -> bool:
        """True if the leaf has rows, but none of them on this rank."""
        return bool(self.shape) and self.shape[0] > 0 and len(self.tensor) == 0

    def chunk(self) -> ChunkStorageMetadata:
        """Return the position of this entry's rows in the whole leaf, as DCP's offsets and sizes."""
        offsets = torch.Size([self.start, *[0] * (len(self.shape) - 1)][: len(self.shape)])
        return ChunkStorageMetadata(offsets, self.tensor.shape)


class Saving(DefaultSavePlanner):
    """DCP planner that writes each entry (some rows of a leaf) once, even if several ranks hold it."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        super().__init__()
        self._entries = {entry.name: entry for entry in entries}

    def create_local_plan(self) -> SavePlan:
        """Return DCP's plan, with an item to write for each entry of this rank."""
        items = []
        for entry in self._entries.values():
            if entry.is_empty:
                continue
            chunk = entry.chunk()
            data = TensorWriteData(
                chunk=chunk,
                properties=TensorProperties(dtype=entry.tensor.dtype),
                size=torch.Size(entry.shape),
            )
            index = MetadataIndex(entry.name, chunk.offsets)
            items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
        # The nesting, for tools of torch that convert the checkpoint to nested dicts.
        nesting = {entry.name: entry.parts for entry in self._entries.values()}
        self.plan = SavePlan(items, planner_data=nesting)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        """Return the tensor that an item of the plan writes."""
        return self._entries[index.fqn].tensor.detach().contiguous()


class Loading(DefaultLoadPlanner):
    """DCP planner that reads a checkpoint into a state's entries; raises if shapes or dtypes differ."""

    def __init__(self, entries: Sequence[Entry], directory: str, strict: bool) -> None:
        super().__init__()
        self._entries = {entry.name: entry for entry in entries}
        self._directory, self._strict = directory, strict

    def create_local_plan(self) -> LoadPlan:
        """Return DCP's plan of the items to read into the entries of this rank.

        Raises:
            CheckpointMismatchError: the checkpoint differs from the entries.
            CheckpointCorruptError: the checkpoint does not have all rows of a leaf.
        """
        assert self.metadata is not None
        saved = self.metadata.state_dict_metadata
        self._check(saved)
        items: list[ReadItem] = []
        for entry in self._entries.values():
            if not entry.tensor.numel():
                continue
            record = saved[entry.name]
            assert isinstance(record, TensorStorageMetadata)  # checked above
            found = create_read_items_for_chunk_list(entry.name, record, [entry.chunk()])
            if sum(math.prod(item.lengths) for item in found) != entry.tensor.numel():
                raise CheckpointCorruptError(
                    f"{self._directory}: {entry.name}: expected a checkpoint that stores each element "
                    "once, got missing or repeated elements. Restore the checkpoint from a copy."
                )
            items += found
        return LoadPlan(items)

    def _check(self, saved: dict[str, Any]) -> None:
        differences = [
            f"  {name}: {reason}"
            for name, entry in self._entries.items()
            if (reason := _difference(saved.get(name), entry)) is not None
        ]
        if self._strict:
            differences += [
                f"  {name}: in the checkpoint, but not in `like`"
                for name in saved
                if name not in self._entries
            ]
        if differences:
            more = len(differences) - _LISTED
            listed = "\n".join(differences[:_LISTED]) + (f"\n  and {more} more" if more > 0 else "")
            raise CheckpointMismatchError(
                f"{self._directory} holds another state than `like`:\n{listed}\nPass a `like` with "
                "these names, shapes and dtypes, or strict=False to ignore entries of the checkpoint."
            )

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        """Return the tensor into which an item of the plan is read."""
        return self._entries[index.fqn].tensor

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Raise for an object that is not a tensor, because DCP stores such objects as pickles."""
        raise CheckpointMismatchError(
            f"{read_item.dest_index.fqn}: expected a tensor, got a pickled object. Save tensors only."
        )


def _difference(saved: Any, entry: Entry) -> str | None:
    if saved is None:
        return "in `like`, but not in the checkpoint"
    if not isinstance(saved, TensorStorageMetadata):
        return "a pickled object in the checkpoint, a tensor in `like`"
    theirs = dtype_and_shape(saved.properties.dtype, saved.size)
    ours = dtype_and_shape(entry.tensor.dtype, entry.shape)
    return None if theirs == ours else f"{theirs} in the checkpoint, {ours} in `like`"


class SafeReader(FileSystemReader):
    """Reader of DCP's files that unpickles only DCP's own classes, and reads in its directory only."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self._directory = directory

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata of the checkpoint, unpickled with DCP's own classes only.

        Raises:
            CheckpointCorruptError: the file does not hold metadata of DCP.
        """
        path = os.path.join(self._directory, ".metadata")
        try:
            with open(path, "rb") as file:
                found = _Unpickler(file).load()
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
            raise _bad(path, f"an error: {error}") from None
        if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
            raise _bad(path, a_or_an(type(found).__name__))
        for place in found.storage_data.values():
            name = place.relative_path
            if os.path.basename(name) != name or name in ("", ".", ".."):
                raise _bad(path, f"the file name {name!a}, not the name of a file in its directory")
        return dataclasses.replace(found, storage_meta=None)


def _bad(path: str, got: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"{path}: expected metadata of torch.distributed.checkpoint, got {got}. Restore the "
        "checkpoint from a copy."
    )


class _Unpickler(pickle.Unpickler):
    """Unpickler that raises for all classes except those that DCP's metadata may contain."""

    _CLASSES = frozenset(
        {
            *(
                ("torch.distributed.checkpoint.metadata", name)
                for name in (
                    *("Metadata", "MetadataIndex", "BytesStorageMetadata", "StorageMeta"),
                    *("TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
                    "_MEM_FORMAT_ENCODING",
                )
            ),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch.serialization", "_get_layout"),
            ("torch", "Size"),
            ("pathlib", "PosixPath"),
            ("pathlib._local", "PosixPath"),  # Python 3.13
            ("collections", "OrderedDict"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or dtype called `name`; raise unless metadata of DCP may contain it.

        Raises:
            UnpicklingError: metadata of DCP do not contain the name.
        """
        if (module, name) in self._CLASSES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(
            f"the class or function {module}.{name} is not allowed in metadata of a DCP checkpoint"
        )
