"""Readers for idx files, the format of MNIST, gzipped or not.

The format is: two zero bytes, a byte for the type, a byte for the number of axes, the size of each axis
as a big-endian 32-bit integer, then the numbers in row-major order.

Read next: `digits.py`, which has handwritten digits without a download.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ftrain.core.errors import DataError
from ftrain.data._files import (
    PathLike,
    check_deflated,
    check_memory,
    existing,
    existing_folder,
    reading,
)

__all__ = ["idx", "mnist"]

#: The largest number of axes of a NumPy array.
_MOST_AXES = 64

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx(path: PathLike) -> Tensor:
    """Return the tensor in an idx file.

    Args:
        path: the file; gzip compression is detected by its content, not by its name.

    Returns:
        A tensor of uint8, int8, int16, int32, float32 or float64, in the shape given in the file.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the magic number is wrong, there are fewer or more numbers than announced, or the
            compression is damaged.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> content = bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9])
        >>> _ = (folder / "tiny-idx2-ubyte").write_bytes(content)
        >>> idx(folder / "tiny-idx2-ubyte")
        tensor([[7, 8, 9]], dtype=torch.uint8)

    References:
        LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998.
    """
    path = existing(path)
    with path.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not gzipped:
            with reading(path):
                return _read(raw, path, gzipped)
        with reading(path, "the gzip compression"), gzip.open(raw) as unpacked:
            return _read(unpacked, path, gzipped)


def mnist(folder: PathLike) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the training and test data of MNIST, Fashion-MNIST or KMNIST from files in one folder.

    Any other data set in the format of MNIST works as well.

    Args:
        folder: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
            `t10k-labels-idx1-ubyte`, each gzipped (`.gz`) or not.

    Returns:
        `(train, test)`: dicts of `image`, float32 `(n, 1, 28, 28)` from 0 to 1, and `label`, int64
        `(n,)`.

    Raises:
        FileNotFoundError: a file is missing; the message says which.
        DataError: a file is damaged, or the numbers of images and labels differ.
    """
    place = existing_folder(folder)
    train, test = (_labelled(place, part) for part in ("train", "t10k"))
    return train, test


def _labelled(folder: Path, part: str) -> dict[str, Tensor]:
    image_path, label_path = (
        _file(folder, f"{part}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    images, labels = idx(image_path), idx(label_path)
    for path, array, axes in ((image_path, images, 3), (label_path, labels, 1)):
        if array.ndim != axes:
            raise DataError(
                f"{path}: expected an array of {axes} axes, got {array.ndim} axes. "
                "Download the file again."
            )
    if len(images) != len(labels):
        raise DataError(
            f"{label_path}: expected {len(images)} labels, one for each image in {image_path}, got "
            f"{len(labels)}. Download both files from the same data set."
        )
    return {"image": images[:, None].to(torch.float32) / 255, "label": labels.to(torch.int64)}


def _file(folder: Path, name: str) -> Path:
    dotted = name.replace("-idx", ".idx")  # the spelling of some mirrors
    for candidate in (name, f"{name}.gz", dotted, f"{dotted}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    raise FileNotFoundError(
        f"file not found: {name} or {name}.gz in {folder.resolve()}. Download it there."
    )


def _read(file: IO[bytes] | gzip.GzipFile, path: Path, gzipped: bool) -> Tensor:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or not head[3]:
        raise DataError(
            f"{path}: expected an idx file, which begins with 00 00, a type (08 for bytes) and a number "
            f"of axes, got {head.hex(' ') or 'an empty file'}. Download it again; it may be a web page."
        )
    dtype, axes = np.dtype(_TYPES[head[2]]), head[3]
    sizes = file.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise DataError(
            f"{path}: expected {4 * axes} bytes of sizes in the header, got {len(sizes)}. Download the "
            "file again."
        )
    shape = struct.unpack(f">{axes}i", sizes)
    if min(shape) < 0:
        raise DataError(
            f"{path}: expected sizes >= 0 in the header, got the shape {shape}. Download the file again."
        )
    if axes > _MOST_AXES:
        raise DataError(
            f"{path}: expected at most {_MOST_AXES} axes, got {axes}. Download the file again."
        )
    announced = math.prod(shape) * dtype.itemsize
    if gzipped:
        check_deflated(path.stat().st_size, announced)
        check_memory(path, f"the shape {shape}", announced)
    content = bytearray()
    # Read in pieces, because a damaged header may announce more bytes than fit in memory.
    while piece := file.read(min(1 << 24, announced + 1 - len(content))):
        content += piece
    if len(content) != announced:
        found = "more" if len(content) > announced else f"{len(content):,}"
        raise DataError(
            f"{path}: expected {announced:,} bytes of numbers for the shape {shape} in the header, got "
            f"{found}. Download the file again."
        )
    array = np.frombuffer(content, dtype=dtype).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("=")))
