"""Test that checkpoints of every earlier format version load, and newer ones raise clearly.

`corpus/` holds one checkpoint for each format version, written when that version was current and never
changed. `python -m tests.checkpoint.test_corpus` writes the checkpoint of the current version, once.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ftrain import TrainState, checkpoint
from ftrain.checkpoint.manifest import VERSION
from ftrain.testing import assert_same_bits
from tests.checkpoint.forge import change_manifest

CORPUS = Path(__file__).parent / "corpus"
METADATA = {"data": {"seed": 3, "epoch": 1, "position": 640}, "best": float("-inf"), "name": "é"}
METRICS = {"loss": 1.25, "bad": float("nan")}


def state(filled: bool) -> TrainState:
    """Return a state whose values do not depend on any random generator."""

    def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        n = torch.Size(shape).numel()
        return (torch.arange(n) * (0.37 if filled else 0) - 1).reshape(shape).to(dtype)

    w = numbers(4, 3)
    return TrainState(
        step=torch.tensor(5 if filled else 0),
        params={"w": w, "b": numbers(3, dtype=torch.bfloat16)},
        buffers={"seen": numbers(2, dtype=torch.int64), "mask": numbers(2) > 0},
        opt_state=({"w": numbers(3, 4).t()}, None, [numbers(2, dtype=torch.float64)]),
        scaler=(),
        rng=torch.tensor([7, 8] if filled else [0, 0], dtype=torch.int32),
        extras={"same": w, "none": torch.empty(0, 3), "wide": numbers(1, 3).expand(2, 3),
                "half": numbers(3, dtype=torch.float16), "z": torch.complex(numbers(2), numbers(2))},
    )  # fmt: skip


def versions() -> list[Path]:
    return sorted(CORPUS.iterdir())


def test_corpus_of_stored_checkpoints_contains_the_current_format_version():
    assert ".".join(map(str, VERSION)) in [path.name for path in versions()]


@pytest.mark.parametrize("path", versions(), ids=lambda path: path.name)
def test_checkpoints_of_every_format_version_load(path):
    loaded, metadata = checkpoint.load(path, like=state(False), on_change="ignore")
    assert_same_bits(loaded, state(True))
    assert metadata == METADATA
    assert loaded.extras["same"] is loaded.params["w"]
    assert loaded.opt_state[0]["w"].stride() == (1, 4)
    manifest = checkpoint.verify(path)
    assert manifest.step == 5
    assert repr(manifest.metrics) == repr(dict(sorted(METRICS.items())))
    _, report = checkpoint.restore(path, state(False))
    assert report.complete


@pytest.mark.parametrize("path", versions(), ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"version": [1, 99], "compression": "none"}, None, ""),
        (
            {"version": [2, 0]},
            checkpoint.CheckpointVersionError,
            r"format version 2.0.*up to 1.x.*Install",
        ),
        (
            {"required_features": ["shards"]},
            checkpoint.CheckpointVersionError,
            "knows 'shards'; this ftrain does not",
        ),
        ({"format": "another"}, checkpoint.CheckpointCorruptError, "not the manifest of an ftrain"),
        ({"prng": "philox"}, checkpoint.CheckpointMismatchError, "random generator 'philox'"),
    ],
)
def test_checkpoints_of_newer_minor_versions_load_and_of_newer_major_versions_are_refused(
    tmp_path, path, changes, error, says
):
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)

    def change(content):
        content |= changes
        if error is None:  # a newer minor version may add fields anywhere
            content["leaves"][0]["more"] = content["files"][0]["more"] = 1

    change_manifest(copy, change)
    if error is None:
        loaded, _ = checkpoint.load(copy, like=state(False), on_change="ignore")
        assert_same_bits(loaded, state(True))
        return
    with pytest.raises(error, match=says):
        checkpoint.load(copy, like=state(False), on_change="ignore")


def test_saving_writes_the_bytes_of_the_stored_checkpoint_of_the_current_version(tmp_path):
    """Any difference requires a new format version."""
    checkpoint.save(tmp_path / "new", state(True), metadata=METADATA, metrics=METRICS, step=5)
    old = CORPUS / ".".join(map(str, VERSION))
    for file in old.glob("tensors-*"):
        assert (tmp_path / "new" / file.name).read_bytes() == file.read_bytes()
    new, stored = (json.loads((p / "manifest.json").read_text()) for p in (tmp_path / "new", old))
    for local in ("versions", "determinism"):
        new.pop(local), stored.pop(local)
    assert new == stored


if __name__ == "__main__":
    target = CORPUS / ".".join(map(str, VERSION))
    checkpoint.save(target, state(True), metadata=METADATA, metrics=METRICS, step=5)
