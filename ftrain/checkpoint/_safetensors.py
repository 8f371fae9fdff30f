"""Safetensors format: eight bytes of header length, a JSON header, and the bytes of the tensors.

Files are written and read here, not by the `safetensors` package, so that each byte is hashed as it is
read or written, files can be synced, errors name their cause, and tensors are read into fresh memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ftrain.checkpoint import _tensors
from ftrain.checkpoint.errors import RESTORE, CheckpointCorruptError

__all__ = ["TensorEntry", "header", "header_length", "parse_header"]

_MOST_HEADER = 100_000_000  # the limit of the format
_ALIGNMENT = 64


class TensorEntry(NamedTuple):
    """Entry of a safetensors header: a tensor, and its range of bytes, counted from the header's end."""

    name: str
    dtype: str
    shape: list[int]
    begin: int
    end: int


def header(tensors: Sequence[tuple[str, torch.dtype, Sequence[int]]]) -> bytes:
    """Return the header of a file with these tensors in order, each by name, dtype and shape.

    Raises:
        ValueError: the header would be longer than the format allows.
    """
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        stored, stored_shape = _tensors.stored_as(dtype, shape)
        content[name] = {"dtype": stored, "shape": stored_shape, "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > _MOST_HEADER:
        raise ValueError(
            f"state: expected a safetensors header of at most {_MOST_HEADER} bytes, got {len(text)} "
            f"bytes for {len(tensors)} tensors. Stack tensors, or shorten their names."
        )
    return len(text).to_bytes(8, "little") + text


def header_length(first: bytes, size: int, path: str) -> int:
    """Return the length of a file's header, read from the first eight bytes of the file."""
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(size - 8, _MOST_HEADER):
        raise CheckpointCorruptError(
            f"{path} is not a safetensors file: expected a header of at most "
            f"{max(0, min(size - 8, _MOST_HEADER))} bytes, got {length}, in a file of {size} bytes. "
            f"{RESTORE}"
        )
    return length


def parse_header(text: bytes, data_size: int, path: str) -> list[TensorEntry]:
    """Return the tensors that a header lists, in the order of their bytes.

    Raises:
        CheckpointCorruptError: the header is not JSON, names a tensor twice or an unknown dtype, or its
            tensors do not fill the file exactly, because of overlaps, holes or sizes that differ.
    """

    def fail(reason: str) -> CheckpointCorruptError:
        return CheckpointCorruptError(f"{path}: invalid safetensors header: {reason}. {RESTORE}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("expected unique tensor names, got a repeated one")
        return found

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise fail(ascii(str(error))[:120]) from None
    if not isinstance(content, dict):
        raise fail("expected a JSON object, got another JSON value")
    content.pop("__metadata__", None)
    entries = []
    for name, given in content.items():
        entry = _entry(name, given)
        if isinstance(entry, str):
            raise fail(f"{ascii(name)[:120]} {entry}")
        entries.append(entry)
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    end = 0
    for entry in entries:
        if entry.begin != end:
            raise fail(
                f"expected the tensor {ascii(entry.name)[:120]} to begin at byte {end}, got "
                f"{entry.begin}"
            )
        end = entry.end
    if end != data_size:
        raise fail(
            f"expected tensors whose sizes add up to the {data_size} bytes after the header, got "
            f"{end} bytes"
        )
    return entries


def _entry(name: str, given: Any) -> TensorEntry | str:
    """Return the validated header entry of a tensor, or a phrase that says why it is invalid."""
    if not isinstance(given, dict) or given.keys() != {"dtype", "shape", "data_offsets"}:
        return "is not described by dtype, shape and data_offsets"
    dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return "has a shape or offsets that are not lists"
    if len(shape) > 64 or not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, *offsets)):
        return "has more than 64 axes, or a size or offset that is not an int in [0, 2**63)"
    known = _tensors.in_header(dtype) if isinstance(dtype, str) else None
    if known is None:
        return f"has the unknown dtype {ascii(dtype)[:40]}"
    if math.prod(shape) * known.itemsize != offsets[1] - offsets[0]:
        return f"is {dtype}{shape}, but has {offsets[1] - offsets[0]} bytes"
    return TensorEntry(name, dtype, shape, *offsets)
