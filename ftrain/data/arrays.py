"""Readers of `.npz`, `.npy` and `.safetensors` files; no code in a file is executed.

Each returns data that `Loader` reads by indexing: a dict of tensors, or a tensor.

Read next: `table.py`, for tables of text.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ftrain.core.errors import DataError
from ftrain.data._files import PathLike, existing

__all__ = ["npy", "npz", "safetensors"]


def npz(path: PathLike) -> dict[str, Tensor]:
    """Return `{name: tensor}` from an `.npz` file, as `np.savez` writes it.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: it is damaged, or an array is not numeric (pickled objects are never loaded).

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
            "Write it with np.savez, or read a single array (.npy) with data.npy"
        )
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    arrays[name] = archive[name]
                except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
                    raise _damaged(path, f"the array {name!r}", error) from None
    except (ValueError, EOFError, zipfile.BadZipFile, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(path, "it", error) from None
    return {name: _numbers(array, f"{path}, array {name!r}") for name, array in arrays.items()}


def npy(path: PathLike, *, mmap: bool = False) -> Tensor:
    """Return the tensor in an `.npy` file, as `np.save` writes it.

    Args:
        path: the file.
        mmap: leave it on the disk: pages are read when they are indexed. Writes to the tensor stay in
            memory and never reach the file.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: it is damaged, or holds no numbers (pickled objects are never loaded).

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> np.save(folder / "x.npy", np.arange(3.0))
        >>> npy(folder / "x.npy")
        tensor([0., 1., 2.], dtype=torch.float64)
    """
    path = existing(path)
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise DataError(
                f"{path}: expected an .npy file, got another format. Write it with np.save, or read an "
                ".npz file with data.npz"
            )
    try:
        array = np.load(path, mmap_mode="c" if mmap else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _damaged(path, "it", error) from None
    return _numbers(array, str(path))


def safetensors(path: PathLike) -> dict[str, Tensor]:
    """Return `{name: tensor}` from a `.safetensors` file, read into memory.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: it is damaged.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> from safetensors.torch import save_file
        >>> save_file({"x": torch.zeros(3)}, folder / "x.safetensors")
        >>> safetensors(folder / "x.safetensors")
        {'x': tensor([0., 0., 0.])}
    """
    path = existing(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, "it", error) from None


def _numbers(array: Any, where: str) -> Tensor:
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 16:
        raise DataError(
            f"{where}: expected a dtype that torch supports, got {array.dtype}. Convert text to numbers "
            "first, for instance with np.unique(array, return_inverse=True)"
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array)


def _damaged(path: Path, what: str, error: Exception) -> DataError:
    if "allow_pickle" in str(error):
        return DataError(
            f"{path}: {what} holds Python objects, which only pickle could load, and pickle can run any "
            "code. Save plain arrays of numbers instead"
        )
    return DataError(f"{path}: {what} is damaged: {error}. Create or copy the file again")
