"""Test that loading detects any damage to the files of a checkpoint."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from ftrain import checkpoint
from tests.checkpoint.campaign_flips import campaign
from tests.checkpoint.states import train_state

FILES = ("SHA256SUMS", "manifest.json", "tensors-00000.safetensors")


@pytest.fixture
def pair(memory_path):
    """Return the paths of two checkpoints of one run."""
    for step in (1, 2):
        checkpoint.save(memory_path / str(step), train_state(step), step=step)
    return memory_path / "1", memory_path / "2"


def refused(path) -> None:
    with pytest.raises(checkpoint.CheckpointCorruptError):
        checkpoint.verify(path)
    with pytest.raises(checkpoint.CheckpointCorruptError):
        checkpoint.load(path, like=train_state(0))
    with pytest.raises(checkpoint.CheckpointCorruptError):
        checkpoint.restore(path, like=train_state(0))


def test_every_single_bit_flip_in_a_checkpoint_is_detected():
    result = campaign(2000)
    assert result.found == result.flips == 2000


def test_truncated_and_extended_checkpoint_files_are_refused(pair):
    for name in FILES:
        file = pair[0] / name
        whole = file.read_bytes()
        for changed in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0", whole + whole):
            file.write_bytes(changed)
            refused(pair[0])
        file.write_bytes(whole)
        file.unlink()
        refused(pair[0])
        file.write_bytes(whole)
    checkpoint.verify(pair[0])


def test_checkpoint_with_files_mixed_from_two_checkpoints_is_refused(pair):
    """Each file is intact, but some belong to another step."""
    one, two = pair
    for taken in (FILES[:1], FILES[1:2], FILES[2:], FILES[:2], FILES[1:], FILES[::2]):
        mixed = one.parent / "mixed"
        shutil.copytree(one, mixed)
        for name in taken:
            shutil.copy(two / name, mixed / name)
        refused(mixed)
        shutil.rmtree(mixed)


def test_checkpoint_with_swapped_tensor_files_is_refused(tmp_path, monkeypatch):
    from ftrain.checkpoint import _draft

    monkeypatch.setattr(_draft, "MOST_IN_A_FILE", 10)
    checkpoint.save(tmp_path / "one", {"a": torch.zeros(3), "b": torch.ones(3)})
    first, second = (tmp_path / "one" / f"tensors-0000{i}.safetensors" for i in range(2))
    for a, b in ((first, second), (second, first)):
        content = a.read_bytes()
        shutil.copy(b, a)
        with pytest.raises(checkpoint.CheckpointCorruptError):
            checkpoint.verify(tmp_path / "one")
        a.write_bytes(content)
    os.rename(first, tmp_path / "x")
    os.rename(second, first)
    os.rename(tmp_path / "x", second)
    with pytest.raises(checkpoint.CheckpointCorruptError):
        checkpoint.verify(tmp_path / "one")


def test_a_file_that_shrinks_during_reading_is_refused(tmp_path):
    from ftrain.checkpoint import _files

    checkpoint.save(tmp_path / "one", {"a": torch.zeros(100_000)})
    file = tmp_path / "one" / FILES[2]

    class Shrinking(_files.Files):
        def size(self, descriptor, path):
            found = super().size(descriptor, path)
            if path.endswith("safetensors"):
                os.truncate(file, 1000)
            return found

    with _files.replaced(Shrinking()), pytest.raises(checkpoint.CheckpointCorruptError):
        checkpoint.verify(tmp_path / "one")


def test_verify_ignores_additional_files(pair):
    (pair[0] / "notes.txt").write_text("a good one")
    checkpoint.verify(pair[0])
