"""Checks that a file fits in memory, made before memory for it is allocated."""

from __future__ import annotations

import errno
import os

from ftrain.checkpoint.errors import CheckpointCorruptError, CheckpointReadError
from ftrain.core import _available_memory

__all__ = ["check_holes", "check_memory"]

#: Largest ratio of size to allocated bytes of a state that a file system compresses.
_MOST_COMPRESSED = 64

#: Bytes up to which nothing is checked, because a query of the available memory takes 50 µs.
_SMALL = 1 << 20


def check_memory(path: str, what: str, needed: int) -> None:
    """Raise if content needs more memory than is available.

    A sparse file takes no space on a disk, and may claim any size.

    Args:
        path: the file or directory.
        what: the content, such as `"its tensors"`.
        needed: its size in memory, in bytes.

    Raises:
        CheckpointReadError: the content does not fit in memory.
    """
    if needed <= _SMALL or needed <= (there := _available_memory.available_memory()):
        return
    raise CheckpointReadError(
        f"read {path}",
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), path),
        f"For {what}, expected at most {there:,} bytes, which are available, got {needed:,}. Free "
        "memory, or check where the file comes from.",
    )


def check_holes(path: str, size: int, allocated: int) -> None:
    """Raise if a sparse file is larger than the available memory, because reading it would take hours.

    Raises:
        CheckpointCorruptError: the file was not written by a save.
    """
    if size <= _SMALL or size <= _MOST_COMPRESSED * allocated:
        return
    if size > _available_memory.available_memory():
        raise CheckpointCorruptError(
            f"{path}: expected {size:,} bytes on the disk, got a sparse file with only {allocated:,} "
            "bytes on the disk. Check where the file comes from."
        )
