"""Reading of untrusted checkpoints: every byte is verified before it is used.

The directory is opened once, and its files are opened relative to it, so that a checkpoint which is
moved meanwhile is still read as a whole; links, pipes and names with a slash are refused.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ftrain.checkpoint import _files, _safetensors, _tensors
from ftrain.checkpoint._fits_in_memory import check_holes, check_memory
from ftrain.checkpoint._hashing import CHUNK, Hashing
from ftrain.checkpoint.errors import (
    RESTORE,
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
    PieceRecord,
)

__all__ = [
    "OpenCheckpoint",
    "Place",
    "Target",
    "open_checkpoint",
    "read_body",
    "read_header",
    "whole",
]

_MOST_SUMS = 16 << 20

#: Largest ratio of a parsed manifest's bytes in memory to its text's: `{"":0},{"":0}` has 34.
_PARSED = 40

Feed = Callable[[memoryview], object]


class Target(NamedTuple):
    """Buffer into which consecutive bytes of a leaf are read.

    Attributes:
        buffer: receives the bytes.
        begin: the position of the first byte in the row-major leaf.
    """

    buffer: memoryview
    begin: int = 0


Place = Callable[[LeafRecord], Target | None]
Segment = tuple[int, memoryview | None]  # number of bytes, and their buffer; `None`: discard them


class _Part(NamedTuple):
    """Bytes `begin` to `end - 1` of a leaf, stored in a file under one name.

    Attributes:
        leaf: the record of the leaf.
        shape: the shape of the part.
        piece: the record of the part; `None` in a checkpoint of one process, which has no pieces.
    """

    leaf: LeafRecord
    shape: tuple[int, ...]
    begin: int
    end: int
    piece: PieceRecord | None

    def segments(self, target: Target | None) -> list[Segment]:
        """Split these bytes at the bounds of a target buffer; only the bytes within are read into it."""
        if target is None:
            return [(self.end - self.begin, None)]
        first = min(max(target.begin, self.begin), self.end)
        last = max(min(target.begin + len(target.buffer), self.end), first)
        inside = target.buffer[max(first - target.begin, 0) :][: last - first]
        return [(first - self.begin, None), (last - first, inside), (self.end - last, None)]


class OpenCheckpoint:
    """Checkpoint whose manifest is verified, and whose tensors are verified when read."""

    def __init__(self, directory: int, path: str) -> None:
        self._directory = directory
        self.path = path
        rendered = self._read_small(MANIFEST, MOST_MANIFEST, _PARSED)
        sums = self._read_small(SUMS, _MOST_SUMS)
        sha256 = hashlib.sha256(rendered).hexdigest().encode()
        if sha256 + b"  " + MANIFEST.encode() not in sums.splitlines():
            raise CheckpointCorruptError(
                f"{self._path(MANIFEST)} is damaged or edited: expected a sha256 that {SUMS} lists, "
                f"got {sha256.decode()}. {RESTORE}"
            )
        self.manifest = Manifest.parse(rendered, self._path(MANIFEST))
        if self.manifest.sums(rendered) != sums:
            raise CheckpointCorruptError(
                f"{self._path(SUMS)} is damaged or edited: expected the files that {MANIFEST} lists, "
                f"got others. {RESTORE}"
            )

    def check_sizes(self, leaves: Iterable[LeafRecord]) -> None:
        """Raise if a file does not have the size in the manifest, or if leaves do not fit in memory.

        Raises:
            CheckpointCorruptError: a file has another size than the one written.
            CheckpointReadError: the leaves do not fit in memory.
        """
        for record in self.manifest.files:
            with self._open(record.name) as descriptor:
                self._check_size(record, descriptor)
        sizes = ((leaf, _tensors.by_name(leaf.dtype)) for leaf in leaves)
        needed = sum(math.prod(leaf.shape) * dtype.itemsize for leaf, dtype in sizes if dtype)
        check_memory(self.path, "its tensors", needed)

    def read(self, place: Place) -> None:
        """Read and verify every file once; read each tensor into the target that `place` returns.

        For a tensor whose target is `None`, the bytes are verified and discarded.

        Raises:
            CheckpointCorruptError: a byte differs from those written; discard all buffers.
        """
        parts: dict[str, dict[str, _Part]] = {file.name: {} for file in self.manifest.files}
        for leaf in self.manifest.leaves:
            for name, part in _parts_of(leaf).items():
                parts[part.piece.file if part.piece else leaf.file][name] = part
        for record in self.manifest.files:
            self._read_file(record, parts[record.name], place)

    def read_pieces(self, place: Place) -> None:
        """Read and verify only the pieces of leaves that a target needs.

        In a checkpoint of one process, which has no pieces, every file is read.

        Raises:
            CheckpointCorruptError: a byte differs from those written; discard all buffers.
        """
        if not self.manifest.in_pieces:
            self.read(place)
            return
        needed: dict[str, list[tuple[_Part, Target]]] = {}
        for leaf in self.manifest.leaves:
            target = place(leaf) if leaf.alias is None else None
            if target is None:
                continue
            end = target.begin + len(target.buffer)
            for part in _parts_of(leaf).values():
                if part.piece and max(part.begin, target.begin) < min(part.end, end):
                    needed.setdefault(part.piece.file, []).append((part, target))
        for name, wanted in needed.items():
            with self._open(name) as descriptor:
                for part, target in wanted:
                    self._read_piece(descriptor, part, target)

    def _read_piece(self, descriptor: int, part: _Part, target: Target) -> None:
        assert part.piece is not None
        path, name = self._path(part.piece.file), part.leaf.piece_name(part.piece)
        with Hashing() as hashing:
            _files.system.seek(descriptor, part.piece.begin, path)
            read_body(descriptor, path, [(name, part.segments(target))], hashing.feed)
            if hashing.hexdigest() != part.piece.sha256:
                raise CheckpointCorruptError(
                    f"{path}: {ascii(name)[:120]} is damaged or edited: expected the sha256 "
                    f"{part.piece.sha256} of the manifest, got {hashing.hexdigest()}. {RESTORE}"
                )

    def _read_file(self, record: FileRecord, parts: dict[str, _Part], place: Place) -> None:
        path = self._path(record.name)
        with self._open(record.name) as descriptor, Hashing() as hashing:
            self._check_size(record, descriptor)
            entries = read_header(descriptor, path, hashing.feed)
            _check_listed(entries, parts, record, path)
            found = ((entry.name, parts[entry.name]) for entry in entries)
            tensors = ((name, part.segments(place(part.leaf))) for name, part in found)
            read_body(descriptor, path, tensors, hashing.feed)
            if hashing.hexdigest() != record.sha256:
                raise CheckpointCorruptError(
                    f"{path} is damaged or edited: expected the sha256 {record.sha256} of the "
                    f"manifest, got {hashing.hexdigest()}. {RESTORE}"
                )

    def _check_size(self, record: FileRecord, descriptor: int) -> None:
        path = self._path(record.name)
        size = _files.system.size(descriptor, path)
        if size != record.size:
            raise CheckpointCorruptError(
                f"{path}: expected {record.size} bytes, as written, got {size}. {RESTORE}"
            )
        check_holes(path, size, _files.system.allocated(descriptor, path))

    def _read_small(self, name: str, most: int, parsed: int = 2) -> bytes:
        path = self._path(name)
        with self._open(name) as descriptor:
            size = _files.system.size(descriptor, path)
            if size > most:
                raise CheckpointCorruptError(
                    f"{path}: expected at most {most} bytes, got {size}. {RESTORE}"
                )
            check_memory(path, "its content", parsed * size)
            return _take(descriptor, size, path)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        path = self._path(name)
        try:
            descriptor = _files.system.open_regular(name, path, self._directory)
        except OSError as error:
            if error.errno == errno.ENOENT:
                hint = RESTORE
                if name == MANIFEST:
                    hint = f"If {self.path} is a store, write Store(...).load(like=state)."
                raise CheckpointCorruptError(f"{path} is missing. {hint}") from None
            if error.errno == errno.ELOOP:
                raise CheckpointCorruptError(
                    f"{path}: expected a regular file, got another kind of file. {RESTORE}"
                ) from None
            raise
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _path(self, name: str) -> str:
        return os.path.join(self.path, name)


@contextlib.contextmanager
def open_checkpoint(path: str | os.PathLike[str]) -> Iterator[OpenCheckpoint]:
    """Open a checkpoint's directory for a `with` block, and verify its manifest.

    Raises:
        CheckpointNotFoundError: the checkpoint does not exist, or was deleted meanwhile.
        CheckpointCorruptError: the manifest differs from the one written.
        CheckpointReadError: a system call failed.
    """
    path = os.path.abspath(os.fspath(path))
    try:
        directory = _files.system.open_directory(path)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointNotFoundError(_nothing(path)) from None
    except OSError as error:
        raise CheckpointReadError(
            "open the checkpoint", error, "Check its access permissions."
        ) from error
    try:
        yield OpenCheckpoint(directory, path)
    except CheckpointCorruptError:
        if not _stands(directory, path):
            raise CheckpointNotFoundError(
                f"{path} was deleted or replaced while it was read. Load it again, or use "
                "Store(...).load, which tries again by itself."
            ) from None
        raise
    except OSError as error:
        raise CheckpointReadError("read the checkpoint", error, "Check the disk.") from error
    finally:
        os.close(directory)


def _stands(directory: int, path: str) -> bool:
    """Return True if a path still refers to the open directory of a checkpoint."""
    try:
        return _files.system.same(directory, path)
    except OSError:
        return True  # unknown: assume that the path still exists


def read_header(descriptor: int, path: str, feed: Feed) -> list[_safetensors.TensorEntry]:
    """Return the entries of a safetensors header, and leave the file position at the first tensor."""
    size = _files.system.size(descriptor, path)
    first = _take(descriptor, 8, path)
    length = _safetensors.header_length(first, size, path)
    text = _take(descriptor, length, path)
    feed(memoryview(first))
    feed(memoryview(text))
    return _safetensors.parse_header(text, size - 8 - length, path)


def whole(buffer: memoryview) -> Segment:
    """Return the segment that reads all bytes of a tensor into a buffer."""
    return len(buffer), buffer


def read_body(
    descriptor: int,
    path: str,
    tensors: Iterable[tuple[str, list[Segment]]],
    feed: Feed,
) -> None:
    """Read the tensors of a file in order, each into the buffers of its segments."""
    scratch = _Scratch()
    for name, segments in tensors:
        for size, target in segments:
            for start in range(0, size, CHUNK):
                count = min(CHUNK, size - start)
                part = scratch.next(count) if target is None else target[start : start + count]
                if _files.system.read_into(descriptor, part, path) < count:
                    raise CheckpointCorruptError(
                        f"{path}: expected {size} bytes of {ascii(name)[:120]}, got fewer: the file "
                        f"became shorter while it was read. {RESTORE}"
                    )
                feed(part)


def _take(descriptor: int, count: int, path: str) -> bytes:
    buffer = bytearray(count)
    done = _files.system.read_into(descriptor, memoryview(buffer), path)
    return bytes(buffer[:done])


class _Scratch:
    """Two buffers used in turn: one is filled while the other is hashed."""

    def __init__(self) -> None:
        self._buffers = [bytearray(), bytearray()]

    def next(self, count: int) -> memoryview:
        self._buffers.reverse()
        if len(self._buffers[0]) < count:
            self._buffers[0] = bytearray(count)
        return memoryview(self._buffers[0])[:count]


def _parts_of(leaf: LeafRecord) -> dict[str, _Part]:
    """Return a leaf's parts in the files, by name: the whole leaf or its pieces; none for an alias."""
    dtype = _tensors.by_name(leaf.dtype)
    if leaf.alias is not None or dtype is None:
        return {}
    if not leaf.pieces:
        return {leaf.path: _Part(leaf, leaf.shape, 0, math.prod(leaf.shape) * dtype.itemsize, None)}
    row = math.prod(leaf.shape[1:]) * dtype.itemsize
    return {
        leaf.piece_name(piece): _Part(
            leaf,
            (piece.rows, *leaf.shape[1:]) if leaf.shape else (),
            piece.start * row,
            (piece.start + piece.rows) * row,
            piece,
        )
        for piece in leaf.pieces
    }


def _check_listed(
    entries: list[_safetensors.TensorEntry], parts: dict[str, _Part], record: FileRecord, path: str
) -> None:
    """Raise unless a file's header lists the same tensors, dtypes and shapes as the manifest."""
    body = record.size - max((entry.end for entry in entries), default=0)
    for entry in entries:
        part = parts.get(entry.name)
        dtype = None if part is None else _tensors.by_name(part.leaf.dtype)
        if part is None or dtype is None:
            raise CheckpointCorruptError(
                f"{path}: expected only tensors that the manifest lists for this file, got "
                f"{ascii(entry.name)[:120]}. {RESTORE}"
            )
        if (entry.dtype, entry.shape) != _tensors.stored_as(dtype, part.shape):
            raise CheckpointCorruptError(
                f"{path}: {entry.name}: expected {part.leaf.dtype}{list(part.shape)}, as in the "
                f"manifest, got {entry.dtype}{entry.shape}. {RESTORE}"
            )
        if part.piece is not None and part.piece.begin != body + entry.begin:
            raise CheckpointCorruptError(
                f"{path}: {entry.name}: expected the tensor to begin at byte {part.piece.begin}, as in "
                f"the manifest, got {body + entry.begin}. {RESTORE}"
            )
    if len(entries) != len(parts):
        missing = sorted(parts.keys() - {entry.name for entry in entries})
        raise CheckpointCorruptError(
            f"{path}: expected the tensor {ascii(missing[0])[:120]}, got a file without this tensor. "
            f"{RESTORE}"
        )


def _nothing(path: str) -> str:
    """Return the error message for a missing checkpoint; it lists names in the path's directory."""
    parent = os.path.dirname(path)
    try:
        beside = [entry for entry in _files.system.list(parent) if not entry.startswith(".")]
    except OSError:
        return f"there is no checkpoint at {path}, nor a directory {parent}. Correct the path."
    listed = ", ".join(beside[-5:]) or "nothing"
    return f"there is no checkpoint at {path}; {parent} holds {listed}. Correct the path."
