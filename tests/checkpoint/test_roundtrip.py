"""Test round trips: equal bits and layouts in fresh memory, from safetensors files."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import checkpoint, tree
from ftrain.checkpoint import _draft, _json, _read
from ftrain.testing import assert_same_bits
from tests.campaign import examples
from tests.checkpoint.states import DTYPES, bytes_of, random_bytes, train_state, trees


def blank(state):
    """Return tensors of the same layouts with other values."""

    def like(leaf):
        if leaf.numel() == 0:
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype)
        extent = 1 + sum((n - 1) * s for n, s in zip(leaf.shape, leaf.stride(), strict=True))
        return torch.zeros(extent, dtype=leaf.dtype).as_strided(leaf.shape, leaf.stride())

    return tree.map(like, state)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@settings(max_examples=examples(50, 150))
@given(state=trees())
def test_any_tree_of_tensors_survives_a_round_trip(memory_path_factory, state):
    path = memory_path_factory()
    before = tree.leaves(tree.map(bytes_of, state))
    checkpoint.save(path, state)
    loaded, metadata = checkpoint.load(path, like=blank(state))
    assert metadata is None
    assert tree.leaves(tree.map(bytes_of, state)) == before
    assert tree.structure(loaded) == tree.structure(state)
    for was, now in zip(tree.leaves(state), tree.leaves(loaded), strict=True):
        assert bytes_of(now) == bytes_of(was)
        assert (now.dtype, now.shape, now.stride()) == (was.dtype, was.shape, was.stride())
        assert now.data_ptr() % 64 == 0
        assert now.data_ptr() != was.data_ptr() or not was.numel()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(metadata=JSON)
def test_metadata_survive_a_round_trip(metadata):
    rendered = _json.render({"user": _json.encode_user(metadata, "metadata")})
    back = _json.decode_floats(_json.parse(rendered, "file")["user"])
    assert repr(back) == repr(metadata) or _same(back, metadata)


def _same(a, b):
    """Return True if two values are equal except for the order of keys."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return repr(a) == repr(b)


def test_saving_equal_states_writes_equal_bytes(tmp_path):
    for name in ("one", "two"):
        checkpoint.save(tmp_path / name, train_state(7), metadata={"a": 1, "b": [2]}, step=7)
    for file in ("SHA256SUMS", "manifest.json", "tensors-00000.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_checkpoint_files_are_valid_safetensors(tmp_path):
    state = {f"{dtype}": random_bytes((3, 5), dtype, 1) for dtype in DTYPES}
    state |= {
        "transposed": torch.randn(3, 5).t(),
        "scalar": torch.tensor(2.0),
        "none": torch.empty(0),
    }
    checkpoint.save(tmp_path / "one", state)
    sums = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    subprocess.run(sums, cwd=tmp_path / "one", capture_output=True, check=True)
    # The package has no complex32, complex128 and, when reading, e8m0, which are stored as bytes.
    read = safetensors.torch.load_file(tmp_path / "one" / "tensors-00000.safetensors")
    assert len(read) == len(state)
    for path, tensor in zip(tree.paths(state), tree.leaves(state), strict=True):
        assert bytes_of(read[path]) == bytes_of(tensor), path


def test_loading_keeps_tied_leaves_tied(tmp_path):
    w = torch.randn(4, 4)
    state = {"a": w, "b": [w, w.t()], "c": w.clone()}
    manifest = checkpoint.save(tmp_path / "one", state)
    assert [leaf.alias for leaf in manifest.leaves] == [None, "['a']", None, None]
    loaded, _ = checkpoint.load(tmp_path / "one", like=blank(state))
    assert loaded["b"][0] is loaded["a"]
    assert loaded["c"].data_ptr() != loaded["a"].data_ptr()
    assert loaded["b"][1].stride() == (1, 4)


def test_save_splits_large_states_into_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(_draft, "MOST_IN_A_FILE", 1000)
    monkeypatch.setattr(importlib.import_module("ftrain.checkpoint.save"), "CHUNK", 64)
    monkeypatch.setattr(_read, "CHUNK", 48)
    state = {str(i): torch.randn(97) for i in range(10)} | {"big": torch.randn(5000)}
    manifest = checkpoint.save(tmp_path / "one", state)
    assert len(manifest.files) == 6
    loaded, _ = checkpoint.load(tmp_path / "one", like=blank(state))
    assert_same_bits(loaded, state)
    checkpoint.verify(tmp_path / "one")


def test_state_large_enough_to_be_hashed_in_chunks_survives_a_round_trip(tmp_path):
    state = {"w": torch.arange(5_000_000), "v": torch.ones(3)}  # 40 MB, five chunks
    checkpoint.save(tmp_path / "one", state)
    loaded, _ = checkpoint.load(tmp_path / "one", like=blank(state))
    assert_same_bits(loaded, state)


def test_requires_grad_survives_a_round_trip(tmp_path):
    state = {"w": torch.nn.Parameter(torch.ones(2)), "n": torch.tensor(1)}
    checkpoint.save(tmp_path / "one", state)
    loaded, _ = checkpoint.load(tmp_path / "one", like=state)
    assert loaded["w"].requires_grad
    assert type(loaded["w"]) is torch.Tensor
    assert not loaded["n"].requires_grad


def test_save_resolves_conjugate_views(tmp_path):
    z = torch.tensor([1 + 2j, 3 - 4j])
    checkpoint.save(tmp_path / "one", {"z": z.conj(), "i": z.conj().imag})
    loaded, _ = checkpoint.load(tmp_path / "one", like={"z": z, "i": z.imag})
    assert loaded["z"].tolist() == [1 - 2j, 3 + 4j]
    assert loaded["i"].tolist() == [-2.0, 4.0]


@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        ({"a": {"b": 3}}, TypeError, r"\['a'\]\['b'\]: expected a tensor, got int '3'"),
        ({"a": torch.eye(2).to_sparse()}, ValueError, r"layout torch.sparse_coo"),
        ({"a": torch.empty(2, device="meta")}, ValueError, "expected values to save"),
    ],
)
def test_save_refuses_leaves_that_are_not_dense_tensors_with_values(tmp_path, state, error, says):
    with pytest.raises(error, match=says):
        checkpoint.save(tmp_path / "one", state)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"a": [torch.ones(1)]}, r"metadata\['a'\]\[0\]: .* got Tensor"),
        ({"a": {1: 2}}, r"metadata\['a'\]: expected string keys.* got int 1. Write '1'"),
        ({"__float__": 1}, "is reserved"),
    ],
)
def test_save_refuses_metadata_that_are_not_json(tmp_path, metadata, says):
    with pytest.raises(TypeError, match=says):
        checkpoint.save(tmp_path / "one", {"w": torch.ones(1)}, metadata=metadata)


def test_load_refuses_a_checkpoint_that_differs_in_any_way_from_the_state_passed_as_like(tmp_path):
    state = train_state(3)
    checkpoint.save(tmp_path / "one", state)
    moments = state.opt_state
    for like, says in [
        (state.replace(params={"w": state.params["w"]}), r"\.params\['b'\] is in the checkpoint"),
        (state.replace(extras={}), r"\.extras\['ema'\] is in the checkpoint, but not in `like`"),
        (state.replace(scaler=(torch.ones(1),)), r"\.scaler\[0\] is in `like`, but not"),
        (
            state.replace(opt_state=(*moments,)),
            r"at \.opt_state the checkpoint has a Moments, `like` has a tuple",
        ),
        (state.replace(rng=torch.zeros(2)), r"\.rng: int32\[2\] in the checkpoint, float32\[2\]"),
        (
            state.replace(buffers={"mean": torch.zeros(4)}),
            r"float32\[3\] in the checkpoint, float32\[4\]",
        ),
        (state.replace(extras={"ema": torch.zeros(3, 5)}), r"\.extras\['ema'\]: strides \(1, 3\)"),
        ({"w": 1}, "a TrainState, `like` has a dict"),
        (None, "has a TrainState, `like` has None"),
    ]:
        with pytest.raises(checkpoint.CheckpointMismatchError, match=says):
            checkpoint.load(tmp_path / "one", like=like)


def test_load_warns_or_raises_if_settings_that_bits_depend_on_have_changed(tmp_path):
    state = {"w": torch.ones(1)}
    checkpoint.save(tmp_path / "one", state, fingerprint={"compiled": "inductor"})
    checkpoint.load(
        tmp_path / "one", like=state, fingerprint={"compiled": "inductor"}, on_change="raise"
    )
    with pytest.warns(
        checkpoint.DeterminismWarning, match="compiled: 'inductor' when saved, None now"
    ):
        checkpoint.load(tmp_path / "one", like=state)
    n = torch.get_num_threads()
    torch.set_num_threads(n + 1)
    with pytest.raises(
        checkpoint.CheckpointMismatchError, match=f"threads: {n} when saved, {n + 1} now"
    ):
        checkpoint.load(
            tmp_path / "one", like=state, fingerprint={"compiled": "inductor"}, on_change="raise"
        )


def test_save_never_overwrites_existing_files(tmp_path):
    state = {"w": torch.ones(3)}
    first = checkpoint.save(tmp_path / "one", state)
    assert checkpoint.save(tmp_path / "one", state) == first  # the same content may be saved again
    with pytest.raises(checkpoint.CheckpointExistsError, match="got another checkpoint"):
        checkpoint.save(tmp_path / "one", {"w": torch.zeros(3)})
    checkpoint.load(tmp_path / "one", like=state)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(checkpoint.CheckpointExistsError, match="not a valid checkpoint"):
        checkpoint.save(tmp_path / "mine", state)
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoint.CheckpointExistsError):
        checkpoint.save(tmp_path / "file", state)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert sorted(os.listdir(tmp_path)) == ["file", "mine", "one"]


def test_load_refuses_a_path_without_a_checkpoint(tmp_path):
    checkpoint.save(tmp_path / "one", {"w": torch.ones(3)})
    with pytest.raises(checkpoint.CheckpointNotFoundError, match="holds one"):
        checkpoint.load(tmp_path / "two", like={})
    with pytest.raises(checkpoint.CheckpointNotFoundError, match="nor a directory"):
        checkpoint.load(tmp_path / "a" / "b", like={})
    (tmp_path / "empty").mkdir()
    with pytest.raises(checkpoint.CheckpointCorruptError, match="manifest.json is missing"):
        checkpoint.load(tmp_path / "empty", like={})


def test_checkpoint_package_imports_no_pickle_and_loads_weights_only():
    """The only `torch.load` is in `read_state_dict` with `format='torch'`."""
    loads = []
    for file in Path(checkpoint.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "marshal", "shelve", "dill", "importlib", "ctypes"}, (
                    file
                )
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__", "np.load"), file
                if called == "torch.load":
                    loads.append((file.name, ast.unparse(node)))
    assert loads == [("state_dicts.py", "torch.load(file, map_location='cpu', weights_only=True)")]
