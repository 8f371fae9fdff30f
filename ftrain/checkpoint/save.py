"""Saving of a state to a hidden directory, which is synced and renamed to its final name.

    1. create a directory `.tmp-...` beside the final one, locked by its writer
    2. write the tensors; hash each file while it is written, then sync it
    3. write the manifest, then SHA256SUMS; sync each, and the directory
    4. rename the directory to its final name; sync the parent directory
    5. delete older checkpoints, now that the new one is durable

If a process is killed, a disk is full or a machine loses power before 4, the checkpoint does not
exist; after 4 it is whole. The next writer deletes the directories of dead writers.

Read next: `load.py`; `store.py`, which manages several checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ftrain.checkpoint import _files, _safetensors, _tensors
from ftrain.checkpoint._directories import discard, make_directories, workplace
from ftrain.checkpoint._draft import Draft, collect, draft
from ftrain.checkpoint._hashing import CHUNK, EarlySync, Hashing
from ftrain.checkpoint.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointWriteError,
)
from ftrain.checkpoint.load import verify
from ftrain.checkpoint.manifest import MANIFEST, MOST_MANIFEST, SUMS, FileRecord, Manifest

__all__ = ["save"]

_AHEAD = 16  # chunks that may wait to be hashed
_MOST_BLOCKS = (
    8  # blocks beside the bytes of a checkpoint: for its directory, and partly filled ends of files
)


def save(
    path: str | os.PathLike[str],
    state: Any,
    *,
    metadata: Any = None,
    step: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write a state to a new directory, atomically and durably.

    After a return, the checkpoint survives a crash of the machine; after an exception, `path` is
    unchanged. Equal states give equal bytes: a checkpoint holds no time, host or process id.

    Args:
        path: the directory to create, parents included. An existing checkpoint is never overwritten:
            saving the same content again changes nothing, other content raises.
        state: any pytree of tensors. Their strides are kept, and leaves that are one tensor stay one.
        metadata: JSON of the caller: data cursor, epoch, configuration. Infinities and NaNs are kept.
        step: the number of the step that produced this state.
        metrics: numbers, by which a `Store` ranks checkpoints.
        fingerprint: settings that the run's bits depend on and ftrain cannot observe, such as how the
            step was compiled; compared at loading.

    Returns:
        The manifest; its `digest` identifies the content.

    Raises:
        CheckpointWriteError: a system call failed; has `path` and `errno`.
        CheckpointExistsError: `path` exists, and is not a checkpoint with the same content.
        TypeError: a leaf is not a tensor, or the metadata are not JSON.
        ValueError: a tensor is sparse, quantised or on the meta device; a step is negative; names or
            metadata are larger than readers accept (a manifest of 512 MiB).

    Example:
        >>> import tempfile
        >>> directory = tempfile.mkdtemp()
        >>> manifest = save(f"{directory}/first", {"w": torch.zeros(2)}, metadata={"epoch": 3})
        >>> sorted(os.listdir(f"{directory}/first"))
        ['SHA256SUMS', 'manifest.json', 'tensors-00000.safetensors']
    """
    content = collect(state, metadata, step, metrics, fingerprint).on_host()
    return publish(draft(content), os.fspath(path))


def publish(content: Draft, path: str) -> Manifest:
    """Write a checkpoint to a temporary directory, then rename the directory to `path`."""
    path = os.path.abspath(path)
    parent = os.path.dirname(path)
    headers, size = _headers(content)
    with refusals(f"save the checkpoint {path}", size):
        make_directories(parent)
        with workplace(parent) as temporary:
            manifest = _write(content, headers, temporary)
            if not appear(temporary, path, manifest):
                _files.system.sync_directory(parent)
    return manifest


def _headers(content: Draft) -> tuple[dict[str, bytes], int]:
    """Return the safetensors header of each file of tensors, and the size of the checkpoint in bytes.

    Raises:
        ValueError: the content exceeds the readers' limits; raised before anything is written.
    """
    headers = {
        name: _safetensors.header([(path, t.dtype, t.shape) for path, t in tensors.items()])
        for name, tensors in content.files.items()
    }
    sizes = {
        name: len(headers[name]) + sum(t.numel() * t.element_size() for t in tensors.values())
        for name, tensors in content.files.items()
    }
    unhashed = tuple(FileRecord(name, size, "0" * 64) for name, size in sizes.items())
    length = len(dataclasses.replace(content.manifest, files=unhashed).render())
    if length > MOST_MANIFEST:
        raise ValueError(
            f"metadata: expected a manifest of at most {MOST_MANIFEST} bytes, got {length}. Put large "
            "data in the state, as tensors."
        )
    return headers, sum(sizes.values()) + length


def _write(content: Draft, headers: Mapping[str, bytes], directory: str) -> Manifest:
    """Write and sync every file of a checkpoint, `SHA256SUMS` last."""
    records = tuple(
        _write_tensors(tensors, headers[name], directory, name)
        for name, tensors in content.files.items()
    )
    manifest = dataclasses.replace(content.manifest, files=records)
    rendered = manifest.render()
    record = write_file(directory, MANIFEST, [memoryview(rendered)])
    write_file(directory, SUMS, [memoryview(manifest.sums(rendered))])
    _files.system.sync_directory(directory)
    return dataclasses.replace(manifest, digest=record.sha256)


def _write_tensors(
    tensors: Mapping[str, torch.Tensor], header: bytes, directory: str, name: str
) -> FileRecord:
    def parts() -> Iterator[memoryview]:
        yield memoryview(header)
        for tensor in tensors.values():
            yield _tensors.row_major(tensor)

    return write_file(directory, name, parts())


def write_file(directory: str, name: str, parts: Any) -> FileRecord:
    path, size = os.path.join(directory, name), 0
    descriptor = _files.system.create(path)
    try:
        early = EarlySync(lambda: _files.system.sync(descriptor, path))
        with contextlib.closing(early), Hashing(_AHEAD) as hashing:
            for part in parts:
                size += len(part)
                for start in range(0, len(part), CHUNK):
                    chunk = part[start : start + CHUNK]
                    hashing.feed(chunk)
                    _files.system.write(descriptor, chunk, path)
                    early.wrote(len(chunk))
            sha256 = hashing.hexdigest()
        _files.system.sync(descriptor, path)
    finally:
        _files.system.close(descriptor, path)
    return FileRecord(name, size, sha256)


def appear(temporary: str, path: str, manifest: Manifest) -> bool:
    """Rename a directory to `path` and sync; return False if `path` had the same content already."""
    parent = os.path.dirname(path)
    try:
        _files.system.rename(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        _check_same(path, manifest)
        return False
    try:
        _files.system.sync_directory(parent)
    except BaseException:
        # The rename may not survive a crash, so delete the directory: the caller sees a failed save.
        discard(path)
        raise
    return True


def _check_same(path: str, manifest: Manifest) -> None:
    """Raise unless an existing path holds a checkpoint with the same content as a manifest."""
    try:
        there = verify(path).digest
    except CheckpointError:  # not a checkpoint, or unreadable
        there = None
    if there != manifest.digest:
        what = "something that is not a valid checkpoint" if there is None else "another checkpoint"
        raise CheckpointExistsError(
            f"{path}: expected an unused path, because checkpoints are never overwritten, got {what}. "
            "Save under another name, or with a Store, which numbers checkpoints by step."
        )


@contextlib.contextmanager
def refusals(action: str, size: int | None = None) -> Iterator[None]:
    """Convert errors of the operating system in a `with` block to `CheckpointWriteError`.

    Args:
        action: the action of the block, such as `save the checkpoint runs/first`.
        size: the number of bytes that the block writes, for the message about a full disk.
    """
    try:
        yield
    except OSError as error:
        unchanged = "The state in memory and older checkpoints are unchanged."
        raise CheckpointWriteError(action, error, remedy(error, size), unchanged) from error


def remedy(error: OSError, size: int | None = None) -> str:
    """Return a remedy for an error of the operating system, as a sentence; `""` if there is none."""
    return {
        errno.ENOSPC: f"The disk is full: {_space(error, size)}.",
        errno.EDQUOT: f"The quota is used up: {_space(error, size)}.",
        errno.EFBIG: "The limit of a file's size is reached: raise the limit (ulimit -f).",
        errno.EACCES: "Choose a directory that may be written to.",
        errno.EROFS: "The file system is read-only: choose another directory.",
        errno.ENOTDIR: "A part of the path is a file: choose another name.",
        errno.EEXIST: "A part of the path is a file, or a link to nothing: choose another name.",
        errno.ENAMETOOLONG: "Choose a shorter name.",
    }.get(error.errno or 0, "")


def _space(error: OSError, size: int | None) -> str:
    """Return the clause that says how much disk space to free for a checkpoint of `size` bytes."""
    if size is None or error.filename is None:
        return "free some space"
    path = os.fsdecode(error.filename)
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    try:
        system = os.statvfs(path)
    except OSError:
        return "free some space"
    free, needed = system.f_bavail * system.f_frsize, size + _MOST_BLOCKS * system.f_frsize
    if needed <= free:  # the limit is a quota, or space was freed meanwhile
        return f"free some space (a checkpoint needs {_bytes(needed)})"
    return (
        f"free {_bytes(needed - free)} (a checkpoint needs {_bytes(needed)}, and {_bytes(free)} are "
        "free)"
    )


def _bytes(count: int) -> str:
    """Format a number of bytes, rounded up.

    Example:
        >>> _bytes(4096), _bytes(1_234_567)
        ('5 kB', '1.3 MB')
    """
    if count < 1_000_000:
        return f"{-(-count // 1000)} kB"
    unit, name = (1_000_000, "MB") if count < 1_000_000_000 else (1_000_000_000, "GB")
    return f"{-(-10 * count // unit) / 10:.1f} {name}"
