"""Test files of weights of other programs: safetensors, torch.save, the Hugging Face hub's layout."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftrain import checkpoint
from tests.checkpoint.states import DTYPES, bytes_of, random_bytes

NATIVE = [d for d in DTYPES if d not in (torch.complex32, torch.complex128, torch.float8_e8m0fnu)]


@given(
    weights=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.builds(
            random_bytes,
            st.lists(st.integers(0, 4), max_size=3).map(tuple),
            st.sampled_from(NATIVE),
            st.integers(0, 99),
        ),
        max_size=5,
    )
)
def test_state_dict_files_are_interchangeable_with_those_of_the_safetensors_package(
    memory_path_factory, weights
):
    """The safetensors package reads files of ftrain, and ftrain reads files of the package."""
    ours, theirs = memory_path_factory(), memory_path_factory()
    checkpoint.write_state_dict(ours, weights)
    safetensors.torch.save_file(weights, theirs)
    for found in (
        checkpoint.read_state_dict(ours),
        checkpoint.read_state_dict(theirs),
        safetensors.torch.load_file(ours),
    ):
        assert found.keys() == weights.keys()
        for name, tensor in weights.items():
            assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
            assert bytes_of(found[name]) == bytes_of(tensor)


def module():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_modules_load_written_state_dicts(tmp_path, format):
    one, two = module(), module()
    path = tmp_path / "model"
    checkpoint.write_state_dict(path, one.state_dict(), format=format)
    two.load_state_dict(checkpoint.read_state_dict(path, format=format))
    for name, tensor in one.state_dict().items():
        assert bytes_of(two.state_dict()[name]) == bytes_of(tensor)
    if format == "torch":
        assert torch.load(path, weights_only=True).keys() == one.state_dict().keys()


def test_write_state_dict_replaces_an_existing_file(tmp_path):
    for value in (1.0, 2.0):
        checkpoint.write_state_dict(tmp_path / "a" / "m", {"w": torch.tensor([value]).expand(3)})
    assert checkpoint.read_state_dict(tmp_path / "a" / "m")["w"].tolist() == [2.0, 2.0, 2.0]
    assert os.listdir(tmp_path / "a") == ["m"]


def hub(directory, weights, parts):
    """Write weights in the layout of `save_pretrained`, with links as in the hub's cache."""
    blobs = directory / "blobs"
    blobs.mkdir(parents=True)
    names = sorted(weights)
    weight_map = {}
    for i in range(parts):
        file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors" if parts > 1 else "model.safetensors"
        part = {name: weights[name] for name in names[i::parts]}
        safetensors.torch.save_file(part, blobs / str(i), metadata={"format": "pt"})
        os.symlink(blobs / str(i), directory / file)
        weight_map |= dict.fromkeys(part, file)
    if parts > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


@pytest.mark.parametrize("parts", [1, 3])
def test_read_state_dict_reads_hugging_face_directories(tmp_path, parts):
    weights = {f"bert.layer.{i}.weight": torch.full((2, 2), float(i)) for i in range(7)}
    hub(tmp_path / "model", weights, parts)
    found = checkpoint.read_state_dict(tmp_path / "model")
    assert {name: t.tolist() for name, t in found.items()} == {
        name: t.tolist() for name, t in weights.items()
    }
    params = {name: torch.zeros(2, 2, dtype=torch.bfloat16) for name in weights}
    params, report = checkpoint.restore(found, params)
    assert report.complete
    assert len(report.converted) == 7


def test_read_state_dict_refuses_damaged_hugging_face_directories(tmp_path):
    weights = {str(i): torch.ones(1) for i in range(4)}
    weight_map = hub(tmp_path / "model", weights, 2)
    index = tmp_path / "model" / "model.safetensors.index.json"
    for content, says in [
        ({"weight_map": weight_map | {"more": weight_map["0"]}}, "got 'more' in only one of them"),
        ({"weight_map": weight_map | {"0": "../../secret"}}, "got '../../secret'"),
        ({"weight_map": [1]}, "whose `weight_map` gives the file"),
        ([], "whose `weight_map` gives the file"),
    ]:
        index.write_text(json.dumps(content))
        with pytest.raises(checkpoint.CheckpointCorruptError, match=says):
            checkpoint.read_state_dict(tmp_path / "model")
    (tmp_path / "none").mkdir()
    for place in (tmp_path / "none", tmp_path / "nowhere"):
        with pytest.raises(checkpoint.CheckpointNotFoundError, match="no weights found"):
            checkpoint.read_state_dict(place)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_read_state_dict_reads_pickles_only_with_format_torch(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "new.pt")
    torch.save({"w": torch.ones(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("new.pt", "old.pt"):
        with pytest.raises(checkpoint.CheckpointCorruptError, match="format='torch'"):
            checkpoint.read_state_dict(tmp_path / name)
        found = checkpoint.read_state_dict(tmp_path / name, format="torch")
        assert found["w"].tolist() == [1.0]

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "crater"),)

    torch.save({"w": Bomb()}, tmp_path / "bomb.pt")
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pt", "bomb.pkl"):
        with pytest.raises(
            checkpoint.CheckpointCorruptError, match="expected a state dict written by torch.save"
        ):
            checkpoint.read_state_dict(tmp_path / name, format="torch")
    assert not (tmp_path / "crater").exists()
    torch.save({"model": {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "nested.pt")
    with pytest.raises(checkpoint.CheckpointCorruptError, match=r"dict with \['model', 'epoch'\]"):
        checkpoint.read_state_dict(tmp_path / "nested.pt", format="torch")


@pytest.mark.parametrize(
    ("weights", "error", "says"),
    [
        ({"a": 1}, TypeError, r"got 'a' \(str\) with an? int"),
        ({1: torch.ones(1)}, TypeError, "got 1 \\(int\\)"),
        ({"a": torch.eye(2).to_sparse()}, ValueError, "expected a dense tensor"),
        (
            {"a": torch.ones(1, dtype=torch.complex128)},
            ValueError,
            "expected a dtype that safetensors supports",
        ),
    ],
)
def test_write_state_dict_refuses_values_that_are_not_storable_tensors(
    tmp_path, weights, error, says
):
    with pytest.raises(error, match=says):
        checkpoint.write_state_dict(tmp_path / "m", weights)
    with pytest.raises(ValueError, match="format: expected"):
        checkpoint.write_state_dict(tmp_path / "m", {"a": torch.ones(1)}, format="pickle")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", ["safetensors", "torch"])
def test_read_state_dict_refuses_pipes_and_devices_without_waiting(tmp_path, format):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "parts").mkdir()
    os.mkfifo(tmp_path / "parts" / "model.safetensors.index.json")
    for name in ("pipe", "device", *(["parts"] if format == "safetensors" else [])):
        with pytest.raises(checkpoint.CheckpointReadError, match="not a regular file"):
            checkpoint.read_state_dict(tmp_path / name, format=format)
