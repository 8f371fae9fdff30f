"""Reading of untrusted checkpoints: every byte is verified before it is used.

The directory is opened once and its files through it, so that a checkpoint which is moved meanwhile
is still read as one; links, pipes and names with a slash are not followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator

from ftrain.checkpoint import _files, _safetensors, _tensors
from ftrain.checkpoint._hashing import CHUNK, Hashing
from ftrain.checkpoint.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointReadError,
)
from ftrain.checkpoint.manifest import (
    MANIFEST,
    MOST_MANIFEST,
    SUMS,
    FileRecord,
    LeafRecord,
    Manifest,
)

__all__ = ["OpenCheckpoint", "open_checkpoint", "read_body", "read_header"]

_MOST_SUMS = 16 << 20

Place = Callable[[LeafRecord], memoryview | None]
Feed = Callable[[memoryview], object]


class OpenCheckpoint:
    """Checkpoint whose manifest is verified, and whose tensors are verified when read."""

    def __init__(self, directory: int, path: str) -> None:
        self._directory = directory
        self.path = path
        rendered = self._read_small(MANIFEST, MOST_MANIFEST)
        sums = self._read_small(SUMS, _MOST_SUMS)
        sha256 = hashlib.sha256(rendered).hexdigest().encode()
        if sha256 + b"  " + MANIFEST.encode() not in sums.splitlines():
            raise CheckpointCorruptError(
                f"{self._path(MANIFEST)} is not what was written: its sha256 is {sha256.decode()}, "
                f"which {SUMS} does not list"
            )
        self.manifest = Manifest.parse(rendered, self._path(MANIFEST))
        if self.manifest.sums(rendered) != sums:
            raise CheckpointCorruptError(
                f"{self._path(SUMS)} is not what was written: it does not list the files in {MANIFEST}"
            )

    def read(self, place: Place) -> None:
        """Read every file once, each tensor into the buffer that `place` returns (`None`: verify only).

        Raises:
            CheckpointCorruptError: a byte differs from those written; discard all buffers.
        """
        leaves: dict[str, dict[str, LeafRecord]] = {file.name: {} for file in self.manifest.files}
        for leaf in self.manifest.leaves:
            if leaf.alias is None:
                leaves[leaf.file][leaf.path] = leaf
        for record in self.manifest.files:
            self._read_file(record, leaves[record.name], place)

    def _read_file(self, record: FileRecord, leaves: dict[str, LeafRecord], place: Place) -> None:
        path = self._path(record.name)
        with self._open(record.name) as descriptor, Hashing() as hashing:
            size = _files.system.size(descriptor, path)
            if size != record.size:
                raise CheckpointCorruptError(
                    f"{path}: expected {record.size} bytes, as written, got {size}"
                )
            entries = read_header(descriptor, path, hashing.feed)
            _check_listed(entries, leaves, path)
            targets = ((entry, place(leaves[entry.name])) for entry in entries)
            read_body(descriptor, path, targets, hashing.feed)
            if hashing.hexdigest() != record.sha256:
                raise CheckpointCorruptError(
                    f"{path} is not what was written: expected the sha256 {record.sha256} of the "
                    f"manifest, got {hashing.hexdigest()}"
                )

    def _read_small(self, name: str, most: int) -> bytes:
        path = self._path(name)
        with self._open(name) as descriptor:
            size = _files.system.size(descriptor, path)
            if size > most:
                raise CheckpointCorruptError(f"{path}: expected at most {most} bytes, got {size}")
            return _take(descriptor, size, path)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        path = self._path(name)
        try:
            descriptor = _files.system.open_regular(name, path, self._directory)
        except OSError as error:
            if error.errno == errno.ENOENT:
                hint = ""
                if name == MANIFEST:
                    hint = f". If {self.path} is a store, write Store(...).load(like=state)"
                raise CheckpointCorruptError(f"{path} is missing{hint}") from None
            if error.errno == errno.ELOOP:
                raise CheckpointCorruptError(f"{path} is not a regular file") from None
            raise
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _path(self, name: str) -> str:
        return os.path.join(self.path, name)


@contextlib.contextmanager
def open_checkpoint(path: str | os.PathLike[str]) -> Iterator[OpenCheckpoint]:
    """Open a checkpoint's directory and verify its manifest, for the length of a `with` block.

    Raises:
        CheckpointNotFoundError: it does not exist, or was deleted meanwhile.
        CheckpointCorruptError: its manifest differs from the one written.
        CheckpointReadError: a system call failed.
    """
    path = os.path.abspath(os.fspath(path))
    try:
        directory = _files.system.open_directory(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointNotFoundError(_nothing(path)) from None
    except OSError as error:
        raise CheckpointReadError("open the checkpoint", error, "Check who may read it.") from error
    try:
        yield OpenCheckpoint(directory, path)
    except CheckpointCorruptError:
        if not _stands(directory, path):
            raise CheckpointNotFoundError(
                f"{path} was deleted or replaced while it was read. Read it again; Store(...).load does "
                "so by itself"
            ) from None
        raise
    except OSError as error:
        raise CheckpointReadError("read the checkpoint", error, "Check the disk.") from error
    finally:
        os.close(directory)


def _stands(directory: int, path: str) -> bool:
    try:
        return _files.system.same(directory, path)
    except OSError:
        return True  # unknown: assume that it still exists


def read_header(descriptor: int, path: str, feed: Feed) -> list[_safetensors.TensorEntry]:
    """Return the entries of a safetensors header, and leave the file position at the first tensor."""
    size = _files.system.size(descriptor, path)
    first = _take(descriptor, 8, path)
    length = _safetensors.header_length(first, size, path)
    text = _take(descriptor, length, path)
    feed(memoryview(first))
    feed(memoryview(text))
    return _safetensors.parse_header(text, size - 8 - length, path)


def read_body(
    descriptor: int,
    path: str,
    targets: Iterable[tuple[_safetensors.TensorEntry, memoryview | None]],
    feed: Feed,
) -> None:
    """Read the tensors in order, each into its buffer; those with `None` are read and discarded."""
    scratch = _Scratch()
    for entry, target in targets:
        size = entry.end - entry.begin
        for start in range(0, size, CHUNK):
            count = min(CHUNK, size - start)
            part = scratch.next(count) if target is None else target[start : start + count]
            if _files.system.read_into(descriptor, part, path) < count:
                raise CheckpointCorruptError(
                    f"{path}: expected {size} bytes of {ascii(entry.name)[:120]}, got fewer: the file "
                    "became shorter while it was read"
                )
            feed(part)


def _take(descriptor: int, count: int, path: str) -> bytes:
    buffer = bytearray(count)
    done = _files.system.read_into(descriptor, memoryview(buffer), path)
    return bytes(buffer[:done])


class _Scratch:
    """Two buffers used in turn: while one is hashed, the other is filled."""

    def __init__(self) -> None:
        self._buffers = [bytearray(), bytearray()]

    def next(self, count: int) -> memoryview:
        self._buffers.reverse()
        if len(self._buffers[0]) < count:
            self._buffers[0] = bytearray(count)
        return memoryview(self._buffers[0])[:count]


def _check_listed(
    entries: list[_safetensors.TensorEntry], leaves: dict[str, LeafRecord], path: str
) -> None:
    """Raise unless a file's header lists the same tensors, dtypes and shapes as the manifest."""
    for entry in entries:
        leaf = leaves.get(entry.name)
        dtype = None if leaf is None else _tensors.by_name(leaf.dtype)
        if leaf is None or dtype is None:
            raise CheckpointCorruptError(
                f"{path}: expected only tensors that the manifest lists for this file, got "
                f"{ascii(entry.name)[:120]}"
            )
        if (entry.dtype, entry.shape) != _tensors.stored_as(dtype, leaf.shape):
            raise CheckpointCorruptError(
                f"{path}: {entry.name}: expected {leaf.dtype}{list(leaf.shape)}, as in the manifest, "
                f"got {entry.dtype}{entry.shape}"
            )
    if len(entries) != len(leaves):
        missing = sorted(leaves.keys() - {entry.name for entry in entries})
        raise CheckpointCorruptError(
            f"{path}: expected the tensor {ascii(missing[0])[:120]}, got a file without it"
        )


def _nothing(path: str) -> str:
    parent = os.path.dirname(path)
    try:
        beside = [entry for entry in _files.system.list(parent) if not entry.startswith(".")]
    except OSError:
        return f"there is no checkpoint at {path}, nor a directory {parent}"
    listed = ", ".join(beside[-5:]) or "nothing"
    return f"there is no checkpoint at {path}; {parent} holds {listed}"
