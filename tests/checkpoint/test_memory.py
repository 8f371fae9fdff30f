"""Test that readers refuse content that does not fit in memory, before they allocate it."""

from __future__ import annotations

import gzip
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ftrain import checkpoint, tasks
from ftrain.checkpoint import (
    CheckpointCorruptError,
    CheckpointReadError,
    _fits_in_memory,
    read_state_dict,
)
from ftrain.checkpoint._fits_in_memory import check_holes
from ftrain.checkpoint._read import open_checkpoint
from ftrain.checkpoint.load import read_dense
from ftrain.core import _available_memory
from ftrain.core.errors import DataError
from ftrain.testing import Trace
from tests.checkpoint.forge import DATA, change_manifest, claim, expand

LIKE = {"a": torch.zeros(4), "b": torch.zeros(4)}
HUGE = 1 << 37  # float32 elements: 512 GiB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "saved"
    checkpoint.save(found, LIKE)
    return found


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Fail a test in which the process grows by 300 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def dense(path: Path) -> dict[str, torch.Tensor]:
    """Read all leaves, as `ftrain diff` does."""
    with open_checkpoint(path) as source:
        return read_dense(source, [leaf.path for leaf in source.manifest.leaves])


def test_manifest_that_states_a_size_larger_than_memory_is_refused(path: Path) -> None:
    """`ftrain diff` once allocated the size in the manifest, and failed with torch's allocator error."""
    claim(path, 0, HUGE, 1 << 40)
    with pytest.raises(
        CheckpointCorruptError, match="expected 1099511627776 bytes, as written, got"
    ):
        dense(path)
    with pytest.raises(CheckpointCorruptError, match="as written"):
        checkpoint.restore(path, like={"b": torch.zeros(4)})
    with pytest.raises(checkpoint.CheckpointMismatchError):
        checkpoint.load(path, like=LIKE)


def test_sparse_file_of_hundreds_of_gigabytes_is_refused(path: Path) -> None:
    """Readers that need no memory refuse the file, too, because hashing its bytes takes an hour."""
    expand(path, 0, HUGE)
    said = (
        r"expected 549,755,814,\d+ bytes on the disk, got a sparse file with only [\d,]{1,6} bytes"
    )
    meta = {"a": torch.empty(HUGE, device="meta"), "b": torch.zeros(4)}
    for read in (
        dense,
        checkpoint.verify,
        lambda path: checkpoint.load(path, like=meta),
        lambda path: checkpoint.restore(path, like={"b": torch.zeros(4)}),
    ):
        with pytest.raises(CheckpointCorruptError, match=said):
            read(path)
    with pytest.raises(
        CheckpointReadError, match=r"For its tensors, expected at most [\d,]+ bytes"
    ):
        read_state_dict(path / DATA)


def test_sparse_file_that_fits_in_memory_is_read(path: Path) -> None:
    """A file system that compresses allocates few bytes for a state of zeros."""
    size = (path / DATA).stat().st_size
    check_holes("compressed", 1 << 62, 1 << 56)
    check_holes("small", 1 << 27, 512)
    assert checkpoint.verify(path).files[0].size == size


def test_leaves_that_together_exceed_their_file_are_refused(path: Path) -> None:
    """Each of 1,000 leaves could once be as large as the file: 1,000 times the file's size in all."""
    size = (path / DATA).stat().st_size

    def edit(content: dict[str, Any]) -> None:
        for leaf in content["leaves"]:
            leaf["shape"] = [size // 4 - 4]

    change_manifest(path, edit)
    with pytest.raises(CheckpointCorruptError, match="a size that fits in its file"):
        dense(path)


@pytest.mark.parametrize(
    "read",
    [
        dense,
        lambda path: checkpoint.load(path, like={"w": torch.zeros(1 << 20)}),
        lambda path: checkpoint.restore(path, like={"w": torch.zeros(1 << 20)}),
        lambda path: read_state_dict(path / DATA),
        lambda path: read_state_dict(path.parent / "w.pt", format="torch"),
    ],
    ids=["diff", "load", "restore", "safetensors", "torch"],
)
def test_undamaged_file_larger_than_the_available_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any]
) -> None:
    tree = {"w": torch.zeros(1 << 20)}
    checkpoint.save(tmp_path / "saved", tree)
    torch.save(tree, tmp_path / "w.pt")
    read(tmp_path / "saved")
    monkeypatch.setattr(_available_memory, "available_memory", lambda: (1 << 22) - 1)
    with pytest.raises(CheckpointReadError, match=r"Cannot allocate memory .* got 4,19\d,\d{3}"):
        read(tmp_path / "saved")
    checkpoint.verify(tmp_path / "saved")  # allocates no memory for tensors


def test_manifest_is_refused_if_parsing_it_needs_more_than_the_available_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b'{"a": [' + b",".join([b'{"":0}'] * 20_000) + b"]}"
    change_manifest(path, lambda content: text)
    with pytest.raises(CheckpointCorruptError, match="expected the exact text"):
        checkpoint.verify(path)
    monkeypatch.setattr(_available_memory, "available_memory", lambda: 40 * len(text) - 1)
    with pytest.raises(CheckpointReadError, match="For its content, expected at most"):
        checkpoint.verify(path)


def test_lora_adapters_larger_than_the_available_memory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    with (tmp_path / "adapter_model.safetensors").open("wb") as file:
        file.truncate(1 << 39)
    with pytest.raises(OSError, match=r"expected at most [\d,]+ bytes, got 549,755,813,888"):
        tasks.read_lora(tmp_path, torch.nn.Linear(2, 2))


def test_compressed_trace_file_that_expands_beyond_the_available_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bomb.trace").write_bytes(gzip.compress(b"[" + b" " * (4 << 20)))
    monkeypatch.setattr("ftrain.testing.divergence.trace.available_memory", lambda: 40 << 20)
    with pytest.raises(DataError, match="expected at most 1,048,576 bytes, which fit in memory"):
        Trace.load(tmp_path / "bomb.trace")
    os.mkfifo(tmp_path / "pipe.trace")
    with pytest.raises(DataError, match="expected a regular file, got a pipe"):
        Trace.load(tmp_path / "pipe.trace")


def test_available_memory_is_at_most_the_memory_of_the_machine() -> None:
    assert (
        1 << 20 < _available_memory.available_memory() <= _available_memory.total_memory() + _swap()
    )
    assert _available_memory.available_memory() > _fits_in_memory._SMALL


def _swap() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith("SwapTotal"))


@pytest.mark.parametrize(
    ("content", "expected"), [("4096\n", 4096), ("max\n", 1 << 62), (None, 1 << 62)]
)
def test_memory_limit_of_a_container_bounds_the_available_memory(
    tmp_path: Path, content: str | None, expected: int
) -> None:
    if content is not None:
        (tmp_path / "memory.max").write_text(content)
    assert _available_memory._limit(str(tmp_path / "memory.max")) == expected
