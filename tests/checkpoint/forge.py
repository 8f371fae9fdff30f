"""Functions that forge checkpoints: they change the content and correct the hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftrain.checkpoint import _json

DATA = "tensors-00000.safetensors"


def split(file: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a safetensors file."""
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def join(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def seal(path: Path, manifest: bytes) -> None:
    """Write a manifest to a checkpoint, and hashes that match its files."""
    (path / "manifest.json").write_bytes(manifest)
    sums = [(path / DATA, DATA), (path / "manifest.json", "manifest.json")]
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n" for file, name in sums]
    (path / "SHA256SUMS").write_text("".join(lines))


def change_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the manifest with `change`, then write and hash it correctly."""
    content = json.loads((path / "manifest.json").read_bytes())
    changed = change(content)
    seal(path, changed if isinstance(changed, bytes) else _json.render(content))


def change_data(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Edit the file of tensors with `change`; the manifest gets its size and hash."""
    (path / DATA).write_bytes(file := change((path / DATA).read_bytes()))

    def record(content: dict[str, Any]) -> None:
        content["files"][0] |= {"size": len(file), "sha256": hashlib.sha256(file).hexdigest()}

    change_manifest(path, record)


def change_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit the header of the file of tensors with `change`."""

    def edit(file: bytes) -> bytes:
        header, data = split(file)
        changed = change(header)
        return join(header if changed is None else changed, data)

    change_data(path, edit)


def claim(path: Path, leaf: int, elements: int, size: int) -> None:
    """Set the number of elements of a leaf, and the bytes of its file, in the manifest only."""

    def edit(content: dict[str, Any]) -> None:
        content["leaves"][leaf] |= {"shape": [elements], "strides": [1]}
        content["files"][0]["size"] = size

    change_manifest(path, edit)


def expand(path: Path, leaf: int, elements: int) -> None:
    """Set the number of elements of a leaf in header and manifest, and extend the file by a hole."""
    content = json.loads((path / "manifest.json").read_bytes())
    content["leaves"][leaf] |= {"shape": [elements], "strides": [1]}
    header, _ = split((path / DATA).read_bytes())
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    header[content["leaves"][leaf]["path"]]["shape"] = [elements]
    end = 0
    for entry in sorted(entries, key=lambda entry: entry["data_offsets"]):
        begin, before = end, entry["data_offsets"]
        whole = entry is header[content["leaves"][leaf]["path"]]
        end += 4 * elements if whole else before[1] - before[0]
        entry["data_offsets"] = [begin, end]
    text = join(header, b"")
    (path / DATA).write_bytes(text)
    os.truncate(path / DATA, len(text) + end)
    # The hash is not computed, because that would take too long in a test.
    content["files"][0] |= {"size": len(text) + end, "sha256": "0" * 64}
    rendered = _json.render(content)
    (path / "manifest.json").write_bytes(rendered)
    (path / "SHA256SUMS").write_text(
        f"{'0' * 64}  {DATA}\n{hashlib.sha256(rendered).hexdigest()}  manifest.json\n"
    )
