"""Readers for `.npz`, `.npy` and `.safetensors` files, which never execute code from a file.

Each reader returns data for a `Loader`: a tensor or a dict of tensors.

Read next: `table.py`, which reads CSV files.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy_format
from safetensors.torch import load_file
from torch import Tensor

from ftrain.core.errors import DataError
from ftrain.data._files import PathLike, check_deflated, check_memory, existing, reading

__all__ = ["npy", "npz", "safetensors"]


def npz(path: PathLike) -> dict[str, Tensor]:
    """Return `{name: tensor}` from an `.npz` file, as `np.savez` writes it.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is damaged, or an array is not numeric (pickled objects are never loaded).

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> np.savez(folder / "pairs.npz", x=np.zeros((3, 2)), y=np.ones(3))
        >>> {name: tuple(array.shape) for name, array in npz(folder / "pairs.npz").items()}
        {'x': (3, 2), 'y': (3,)}
    """
    path = existing(path)
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path}: expected an .npz file (a zip of arrays), got another format or a truncated file. "
            "Write it with np.savez, or read a single array (.npy) with data.npy."
        )
    found: dict[str, Tensor] = {}
    with reading(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if not members:
            raise DataError(
                f"{path}: expected arrays, got none. Write it with np.savez(path, x=x)."
            )
        check_memory(path, "its arrays", sum(member.file_size for member in members))
        for member in members:
            name = member.filename.removesuffix(".npy")
            what = f"the array {name!r}"
            with reading(path, what):
                _check_ratio(member)
                with archive.open(member) as file:
                    header = _Header.read(file)
                    header.check(path, what, member.file_size)
                with archive.open(member) as file:
                    found[name] = header.tensor(npy_format.read_array(file, allow_pickle=False))
    return found


def npy(path: PathLike, *, mmap: bool = False) -> Tensor:
    """Return the tensor in an `.npy` file, as `np.save` writes it.

    Args:
        path: the file.
        mmap: True to map the file into memory: pages are read when they are indexed. Writes to the
            tensor do not change the file.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is damaged, or has no numbers (pickled objects are never loaded).

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> np.save(folder / "x.npy", np.arange(3.0))
        >>> npy(folder / "x.npy")
        tensor([0., 1., 2.], dtype=torch.float64)
    """
    path = existing(path)
    with path.open("rb") as file:
        if file.read(6) != npy_format.MAGIC_PREFIX:
            raise DataError(
                f"{path}: expected an .npy file, got another format. Write it with np.save, or read an "
                ".npz file with data.npz."
            )
        with reading(path):
            file.seek(0)
            header = _Header.read(file)
            header.check(path, "it", path.stat().st_size)
            if not mmap:
                check_memory(path, "its array", header.bytes)
            return header.tensor(np.load(path, mmap_mode="c" if mmap else None, allow_pickle=False))


def safetensors(path: PathLike) -> dict[str, Tensor]:
    """Return `{name: tensor}` from a `.safetensors` file, read into memory.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is damaged.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> from safetensors.torch import save_file
        >>> save_file({"x": torch.zeros(3)}, folder / "x.safetensors")
        >>> safetensors(folder / "x.safetensors")
        {'x': tensor([0., 0., 0.])}
    """
    path = existing(path)
    check_memory(path, "its tensors", path.stat().st_size)
    with reading(path):
        return load_file(path)


class _Header(NamedTuple):
    """Header of an array in NumPy's format.

    Attributes:
        shape: shape of the array.
        dtype: dtype of its numbers.
        length: length of the header, in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    length: int

    @classmethod
    def read(cls, file: IO[bytes]) -> _Header:
        """Read the header at the beginning of a file."""
        version = npy_format.read_magic(file)
        readers = {
            (1, 0): npy_format.read_array_header_1_0,
            (2, 0): npy_format.read_array_header_2_0,
        }
        if version not in readers:  # (3, 0) is used only for names of fields, which are not numbers
            raise ValueError(f"expected version 1.0 or 2.0 of the format, got {version}")
        shape, _, dtype = readers[version](file)
        return cls(shape, dtype, file.tell())

    @property
    def bytes(self) -> int:
        """Total number of bytes of the array's elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check(self, path: Path, what: str, size: int) -> None:
        """Raise unless the array is numeric and, with its header, has at most `size` bytes."""
        where = str(path) if what == "it" else f"{path}, {what.removeprefix('the ')}"
        if self.dtype.hasobject:
            raise DataError(
                f"{path}: {what} holds Python objects, which only pickle could load, and pickle can run "
                "any code. Save plain arrays of numbers instead."
            )
        if self.dtype.kind not in "biufc" or self.dtype.itemsize > 16:
            raise DataError(
                f"{where}: expected a dtype that torch supports, got {self.dtype}. Convert text to "
                "numbers first, for instance with np.unique(array, return_inverse=True)."
            )
        if min(self.shape, default=0) < 0 or self.length + self.bytes > size:
            raise ValueError(
                f"expected {self.length + self.bytes:,} bytes for the shape {self.shape}, got {size:,}"
            )

    def tensor(self, array: Any) -> Tensor:
        """Convert the array that was read to a tensor."""
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        return torch.from_numpy(array)


def _check_ratio(member: zipfile.ZipInfo) -> None:
    """Raise if a zip announces more bytes than its compressed content can expand to."""
    if member.compress_type == zipfile.ZIP_DEFLATED:
        check_deflated(member.compress_size, member.file_size)
    elif member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
        raise ValueError(
            f"expected {member.compress_size:,} bytes of an array that is not compressed, got "
            f"{member.file_size:,}"
        )
