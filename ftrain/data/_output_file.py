"""Files with a function's outputs for each sample, in safetensors format, written and read row by row.

Read next: `outputs.py`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ftrain.core import _file_output
from ftrain.core.errors import DataError

__all__ = ["Draft", "OutputFile", "is_storable", "opened"]

_FORMAT = "ftrain outputs 1"
_CHUNK = 8 << 20
_LONGEST_HEADER = 1 << 20
#: Dtypes by their names in a safetensors header.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_DIGITS = 64  # hexadecimal digits of a sha256


def is_storable(dtype: torch.dtype) -> bool:
    """Return True if a file can hold tensors of this dtype."""
    return dtype in _NAMES


class OutputFile(NamedTuple):
    """Complete file of stored outputs, of which only the header has been read.

    Attributes:
        path: the file.
        metadata: the digests, as strings by name.
        entries: dtype, shape and byte offsets of each tensor.
        start: the offset of the first byte after the header.
    """

    path: Path
    metadata: dict[str, str]
    entries: dict[str, Any]
    start: int

    @property
    def rows(self) -> int:
        """Number of samples."""
        rows: int = next(iter(self.entries.values()))["shape"][0]
        return rows

    def is_whole(self) -> bool:
        """Read the file; return True if header and tensors have the digests recorded in the header."""
        content = _digest(self.path, self.start, self.metadata, self.entries)
        return content == self.metadata.get("content")

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, read from the disk when indexed; writes to them stay in memory."""
        return {
            name: torch.from_numpy(region)
            .view(_DTYPES[self.entries[name]["dtype"]])
            .reshape(self.entries[name]["shape"])
            for name, region in _regions(self.path, self.entries, self.start, "c").items()
        }


def opened(path: Path) -> OutputFile:
    """Read and check the header of a file of outputs.

    Raises:
        DataError: the file has another format, or its length differs from its header.
    """
    try:
        if not path.is_file():
            raise ValueError("not a regular file")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError("no header")
            header: dict[str, Any] = json.loads(file.read(length))
        metadata = {name: x.strip() for name, x in header.pop("__metadata__").items()}
        if metadata["format"] != _FORMAT:
            raise ValueError(f"format {metadata['format']!r}")
        if path.stat().st_size != 8 + length + _size(header) or not header:
            raise ValueError("its length does not match its header")
        if not metadata.keys() >= {"data", "source", "batch_size"}:
            raise ValueError("no digests")
        return OutputFile(path, metadata, header, 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected outputs as data.with_outputs writes them, got another or a damaged file "
            f"({error}). Delete it to compute them again, or give another path."
        ) from None


class Draft:
    """File of outputs that is being written; it gets its final name when it is complete.

    Args:
        path: the final name.
        rows: the number of samples.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._path, self._rows = path, rows
        self._entries: dict[str, Any] = {}
        self._regions: dict[str, Any] = {}

    def __enter__(self) -> Draft:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = _file_output.new_draft(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        self._regions = {}
        self._partial.unlink(missing_ok=True)

    def put(self, outputs: dict[str, Tensor], at: int) -> None:
        """Write the outputs of some samples, beginning with sample `at`.

        Raises:
            ValueError: the outputs differ from those of the first batch in names, dtypes or shapes.
        """
        if not self._entries:
            self._entries = _layout(outputs, self._rows)
            end = self._write_header({}) + _size(self._entries)
            _reserve(self._partial, end)
            start = end - _size(self._entries)
            self._regions = _regions(self._partial, self._entries, start, "r+")
        got, expected = ({n: _kind(n, x) for n, x in each.items()} for each in (
            {name: (_NAMES[x.dtype], x.shape[1:]) for name, x in outputs.items()},
            {name: (x["dtype"], x["shape"][1:]) for name, x in self._entries.items()},
        ))  # fmt: skip
        if got != expected:
            raise ValueError(
                f"fn: expected {', '.join(expected.values())}, as for the first batch, got "
                f"{', '.join(got.values())}. Return the same outputs for each batch."
            )
        for name, x in outputs.items():
            content = x.contiguous().reshape(-1).view(torch.uint8).numpy()
            first = at * (content.size // max(len(x), 1))
            self._regions[name][first : first + content.size] = content

    def publish(self, digests: dict[str, str]) -> None:
        """Write the digests into the header, and give the complete file its final name."""
        for region in self._regions.values():
            region.flush()
        start = self._partial.stat().st_size - _size(self._entries)
        digests = {"format": _FORMAT, **digests}
        content = _digest(self._partial, start, digests, self._entries)
        self._write_header({**digests, "content": content})
        _file_output.publish(self._partial, self._path)

    def _write_header(self, metadata: dict[str, str]) -> int:
        """Write the header, padded to a length independent of the digests; return the length."""
        blank = dict.fromkeys(("format", "data", "source", "batch_size", "single", "content"), "")
        padded = {name: x.ljust(_DIGITS) for name, x in {**blank, **metadata}.items()}
        header = {"__metadata__": padded, **self._entries}
        text = json.dumps(header, sort_keys=True).encode()
        text += b" " * (-len(text) % 8)
        with self._partial.open("r+b") as file:
            file.write(len(text).to_bytes(8, "little") + text)
        return 8 + len(text)


def _reserve(path: Path, size: int) -> None:
    """Extend a file and reserve its space: on a full disk, writing to mapped memory kills the process.

    Raises:
        OSError: the disk is full.
    """
    os.truncate(path, size)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise OSError(error.errno, error.strerror, str(path)) from None
        except AttributeError:  # some systems do not have it
            pass


def _kind(name: str, entry: tuple[str, Any]) -> str:
    return f"{name!r} of {entry[0]} {tuple(entry[1])} a sample"


def _layout(outputs: dict[str, Tensor], rows: int) -> dict[str, Any]:
    """Return dtype, shape and offsets of tensors with `rows` rows like those of `outputs`."""
    found, end = {}, 0
    # Tensors with the largest elements come first, so that each begins at a multiple of its element
    # size.
    for name, x in sorted(outputs.items(), key=lambda each: -each[1].element_size()):
        shape = [rows, *x.shape[1:]]
        size = math.prod(shape) * x.element_size()
        found[name] = {"dtype": _NAMES[x.dtype], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return found


def _size(entries: dict[str, Any]) -> int:
    """Return the number of bytes of all tensors."""
    return max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)


def _digest(path: Path, start: int, metadata: dict[str, str], entries: dict[str, Any]) -> str:
    """Return the sha256 of a header (without this hash) and of a file's bytes from an offset on."""
    kept = {name: x for name, x in metadata.items() if name != "content"}
    found = hashlib.sha256(json.dumps([kept, entries], sort_keys=True).encode())
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _regions(path: Path, entries: dict[str, Any], start: int, mode: Any) -> dict[str, Any]:
    """Return the bytes of each tensor, mapped into memory."""
    found = {}
    for name, entry in entries.items():
        first, end = entry["data_offsets"]
        found[name] = np.memmap(path, np.uint8, mode, start + first, (end - first,))
    return found
