"""Reading and writing of state dicts `{name: tensor}` as single files, with names unchanged.

A state dict is the value of `module.state_dict()`, and the content of files of weights on the Hugging
Face hub. `restore` copies a state dict into a state.
"""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO, Literal, get_args

import torch

from ftrain.checkpoint import _files, _safetensors, _tensors
from ftrain.checkpoint._directories import make_directories, workplace
from ftrain.checkpoint._fits_in_memory import check_memory
from ftrain.checkpoint._read import read_body, read_header, whole
from ftrain.checkpoint.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    CheckpointReadError,
)
from ftrain.checkpoint.save import refusals, write_file
from ftrain.core._words import a_or_an, one_line

__all__ = ["read_state_dict", "write_state_dict"]

Format = Literal["safetensors", "torch"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MOST_INDEX = 256 << 20
#: Limits of the bytes of all tensors from a file of torch, where one number with strides of 0 can fill a
#: tensor of any size: the first number times the bytes of the file, or the second number if larger.
_WIDEST, _ALWAYS = 1024, 1 << 28


def write_state_dict(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    *,
    format: Format = "safetensors",
) -> None:
    """Write `{name: tensor}` to one file, atomically, replacing an existing file.

    Args:
        path: the file; most programs expect the name `model.safetensors`.
        tensors: such as `{**state.params, **state.buffers}`. A parameter that a module has under two
            names is stored under the first; load it by `module.load_state_dict(..., strict=False)`.
        format: `"torch"` writes the format of `torch.save`, for programs that read no other.

    Raises:
        CheckpointWriteError: a system call failed.
        TypeError: a value is not a tensor.
        ValueError: a tensor has a dtype or layout that the format does not support.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/model.safetensors"
        >>> write_state_dict(path, {"fc.weight": torch.ones(1, 2)})
        >>> read_state_dict(path)
        {'fc.weight': tensor([[1., 1.]])}
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(
            "tensors: expected a mapping of names to tensors, got "
            f"{a_or_an(type(tensors).__name__)}. Pass module.state_dict(), for example."
        )
    _check_format(format)
    for name, tensor in tensors.items():
        _check(name, tensor, format)
    path = os.path.abspath(os.fspath(path))
    directory = os.path.dirname(path)
    with refusals(f"export to {path}"):
        make_directories(directory)
        with workplace(directory) as temporary:
            write_file(temporary, _SINGLE, _parts(tensors, format))
            _files.system.rename(os.path.join(temporary, _SINGLE), path)
            _files.system.sync_directory(directory)


def read_state_dict(
    path: str | os.PathLike[str], *, format: Format = "safetensors"
) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name, on the CPU, in fresh memory.

    Args:
        path: a safetensors file, or a directory with `model.safetensors` or, in several parts,
            `model.safetensors.index.json`, as on the Hugging Face hub.
        format: `"torch"` reads a `torch.save`d state dict with `weights_only=True`. That format is
            Python's pickle, which `weights_only` restricts and which was broken out of before
            (CVE-2025-32434, CVE-2026-24747): only for files you trust.

    Raises:
        CheckpointNotFoundError: the path does not exist.
        CheckpointCorruptError: the file is not in this format; a pickle, for example.
        CheckpointReadError: a system call failed.
    """
    _check_format(format)
    path = os.path.abspath(os.fspath(path))
    try:
        if format == "torch":
            return _import_torch(path)
        if not os.path.isdir(path):
            return _import_file(path)
        if os.path.exists(os.path.join(path, _SINGLE)):
            return _import_file(os.path.join(path, _SINGLE))
        if not os.path.exists(os.path.join(path, _INDEX)):
            raise CheckpointNotFoundError(
                f"no weights found in {path}: expected {_SINGLE} or {_INDEX}, got neither. Correct the "
                "path."
            )
        return _import_parts(path)
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            f"no weights found: {error.filename} does not exist. Correct the path."
        ) from None
    except OSError as error:
        raise CheckpointReadError(
            "read the weights", error, "Check the file's access permissions."
        ) from error


def _parts(tensors: Mapping[str, torch.Tensor], format: Format) -> list[memoryview]:
    if format == "torch":
        buffer = io.BytesIO()
        torch.save({name: t.detach().cpu().clone() for name, t in tensors.items()}, buffer)
        return [buffer.getbuffer()]
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header = _safetensors.header([(name, t.dtype, t.shape) for name, t in ordered])
    return [memoryview(header), *(_tensors.row_major(tensor) for _, tensor in ordered)]


def _import_file(path: str) -> dict[str, torch.Tensor]:
    descriptor = _open(path)
    try:
        entries = read_header(descriptor, path, lambda _: None)
        check_memory(path, "its tensors", max((entry.end for entry in entries), default=0))
        found = {
            entry.name: torch.empty(entry.shape, dtype=_tensors.in_header(entry.dtype))
            for entry in entries
        }
        tensors = (
            (entry.name, [whole(_tensors.memory_of(found[entry.name]))]) for entry in entries
        )
        read_body(descriptor, path, tensors, lambda _: None)
    except CheckpointCorruptError as error:
        if not _looks_pickled(path):
            raise
        raise CheckpointCorruptError(
            f"{path} was written by torch.save: it is a pickle, which can run code when it is read. If "
            "you trust it, write read_state_dict(path, format='torch')."
        ) from error
    finally:
        os.close(descriptor)
    return dict(sorted(found.items()))


def _import_parts(directory: str) -> dict[str, torch.Tensor]:
    index = os.path.join(directory, _INDEX)
    with _opened(index) as file:
        text = file.read(_MOST_INDEX)
    try:
        names = json.loads(text)["weight_map"]
        files = sorted(set(names.values()))
        safe = all(os.path.basename(name) == name for name in files)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise CheckpointCorruptError(
            f"{index}: expected a JSON object whose `weight_map` gives the file of each tensor, "
            "got none. Download or export the file again."
        ) from None
    if not safe:
        elsewhere = next(name for name in files if os.path.basename(name) != name)
        raise CheckpointCorruptError(
            f"{index}: expected names of files in the directory of the index, got "
            f"{ascii(elsewhere)[:120]}. Put each file beside the index, and write its name alone."
        )
    found: dict[str, torch.Tensor] = {}
    for name in files:
        found |= _import_file(os.path.join(directory, name))
    if found.keys() != names.keys():
        odd = sorted(found.keys() ^ names.keys())[0]
        raise CheckpointCorruptError(
            f"{index}: expected the same tensor names in the index and in its files, got {odd!a} in "
            "only one of them. Download or export the files again."
        )
    return found


def _import_torch(path: str) -> dict[str, torch.Tensor]:
    with _opened(path) as file:
        try:
            _check_sizes(file)
            check_memory(path, "its tensors", os.fstat(file.fileno()).st_size)
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        except CheckpointReadError:
            raise
        except Exception as error:  # torch raises many kinds for a file that is not a state dict
            # EINVAL comes from a seek before the start of the file.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                error.filename = error.filename or path
                raise
            # The part of torch's message before these words advises to set weights_only=False.
            reason = str(error).rpartition("WeightsUnpickler error:")[2]
            raise CheckpointCorruptError(
                f"{path}: expected a state dict written by torch.save, got an error: "
                f"{one_line(reason)}. Save the state dict again."
            ) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        inside = f" with {one_line(list(content)[:8])}" if isinstance(content, Mapping) else ""
        raise CheckpointCorruptError(
            f"{path}: expected a mapping of names to tensors, got {a_or_an(type(content).__name__)}"
            f"{inside}. Extract the state dict from it and save that."
        )
    most = max(_WIDEST * os.path.getsize(path), _ALWAYS)
    for name, t in content.items():
        most -= t.numel() * t.element_size()
        if t.is_meta or t.layout != torch.strided or most < 0:
            raise CheckpointCorruptError(
                f"{path}: expected dense tensors that are no larger than the file, got "
                f"{one_line(ascii(name))} of shape {tuple(t.shape)}, sparse, expanded or without "
                "values. Save t.contiguous()."
            )
    return {
        str(name): t.detach().clone(memory_format=torch.contiguous_format)
        for name, t in content.items()
    }


def _check_sizes(file: BinaryIO) -> None:
    """Raise if the parts of a zip file are larger than the file, because torch does not compress."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            sizes = sum(part.file_size for part in archive.infolist())
        if sizes > os.fstat(file.fileno()).st_size:
            raise ValueError("the parts of the archive are larger than the file")
    file.seek(0)


def _check(name: Any, tensor: Any, format: Format) -> None:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"tensors: expected strings and tensors, got {name!r} ({type(name).__name__}) with "
            f"{a_or_an(type(tensor).__name__)}. Pass module.state_dict(), for example."
        )
    if name == "__metadata__" and format == "safetensors":
        raise ValueError(
            f"tensors: expected names other than {name!r}, which safetensors reserves, got this name. "
            "Rename this tensor."
        )
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        raise ValueError(
            f"{name!r}: expected a dense tensor with values, got a sparse, nested or meta tensor. Write "
            "tensor.to_dense(), or leave this tensor out."
        )
    stored = _tensors.name_of(tensor.dtype) and _tensors.stored_as(tensor.dtype, ())
    if format == "safetensors" and (not stored or stored[1]):
        raise ValueError(
            f"{name!r}: expected a dtype that safetensors supports, got {tensor.dtype}. Convert the "
            "tensor, or write format='torch'."
        )


def _check_format(format: Format) -> None:
    if format not in get_args(Format):
        raise ValueError(
            f"format: expected 'safetensors' or 'torch', got {format!r}. Write format='torch'."
        )


def _open(path: str) -> int:
    """Open a regular file; follow symbolic links, because hub caches use them for their files."""
    return _files.system.open_regular(os.path.realpath(path), path)


def _opened(path: str) -> BinaryIO:
    return os.fdopen(_open(path), "rb")


def _looks_pickled(path: str) -> bool:
    with _opened(path) as file:
        first = file.read(4)
    return first.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
