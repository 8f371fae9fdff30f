"""Test that checkpoints saved in any partition load into any other partition, byte for byte.

The ranks are threads; `test_checkpoints_of_ranks.py` has processes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftrain import checkpoint, tree
from ftrain.checkpoint import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointRankError,
    Shard,
    _json,
    _tensors,
)
from ftrain.checkpoint._draft import collect
from ftrain.distributed import _checkpoint_pieces
from ftrain.distributed.save import publish
from ftrain.testing import assert_same_bits
from tests.checkpoint.states import bytes_of, flip, train_state, trees
from tests.distributed.threads import blank, divisible, each, layouts, local, memory_folder, saved


@st.composite
def partitions(draw, state, ranks):
    """Generate a layout for each rank: rows cut anywhere, empty shards, shards on several ranks."""
    shards = [{} for _ in range(ranks)]
    for path, leaf in zip(tree.paths(state), tree.leaves(state), strict=True):
        if not divisible(leaf) or draw(st.booleans()):
            continue
        count = draw(st.integers(1, ranks))
        n = len(leaf)
        cuts = sorted(draw(st.lists(st.integers(0, n), min_size=count - 1, max_size=count - 1)))
        ends = [0, *cuts, n]
        parts = [Shard(tuple(leaf.shape), a, b - a) for a, b in itertools.pairwise(ends)]
        extra = [draw(st.sampled_from(parts)) for _ in range(ranks - count)]
        for rank, part in enumerate(draw(st.permutations(parts + extra))):
            shards[rank][path] = part
    return shards


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@settings(max_examples=40)
@given(data=st.data())
def test_tree_saved_in_any_partition_loads_into_any_other_partition(data):
    state = data.draw(trees())
    shards = data.draw(partitions(state, data.draw(st.integers(1, 4), "ranks")))
    other = data.draw(partitions(state, data.draw(st.integers(1, 3), "other ranks")))
    with memory_folder() as folder:
        found = saved(folder / "one", [local(state, each) for each in shards], shards)
        assert [type(each) for each in found] == [checkpoint.Manifest] * len(shards), found
        assert checkpoint.verify(folder / "one") == found[0]
        whole, _ = checkpoint.load(folder / "one", like=blank(state))
        for was, now in zip(tree.leaves(state), tree.leaves(whole), strict=True):
            assert bytes_of(now) == bytes_of(was)
            assert _tensors.same_strides(was.shape, was.stride(), now.stride())
        for layout in other:
            like = local(state, layout)
            part, _ = checkpoint.load(folder / "one", like=blank(like), layout=layout)
            assert_same_bits(part, like)


def test_state_saved_and_loaded_by_one_two_four_and_one_ranks_keeps_its_bytes(tmp_path):
    state, ranks = train_state(3, size=7), (1, 2, 4, 1)
    locals_ = [state]
    for index, size in enumerate(ranks):
        shards = layouts(state, size)
        found = saved(tmp_path / str(index), locals_, layouts(state, len(locals_)), step=index)
        assert found[0].step == index
        locals_ = [
            checkpoint.load(tmp_path / str(index), blank(local(state, each)), layout=each)[0]
            for each in shards
        ]
        for layout, got in zip(shards, locals_, strict=True):
            assert_same_bits(got, local(state, layout))
    assert_same_bits(locals_[0], state)


def test_checkpoint_of_one_process_loads_into_shards(tmp_path):
    state = train_state(3)
    checkpoint.save(tmp_path / "one", state, metadata={"at": 3})
    for ranks in (2, 3):
        for layout in layouts(state, ranks):
            like = local(state, layout)
            got, metadata = checkpoint.load(tmp_path / "one", blank(like), layout=layout)
            assert_same_bits(got, like)
            assert metadata == {"at": 3}


def test_padding_rows_of_shards_are_neither_saved_nor_loaded(tmp_path):
    w = torch.randn(5, 2)
    shards = layouts({"w": w}, 3)
    states = [
        {"w": torch.cat([local({"w": w}, each)["w"], torch.full((2, 2), 9.0)])} for each in shards
    ]
    saved(tmp_path / "one", states, shards)
    assert_same_bits(checkpoint.load(tmp_path / "one", {"w": torch.zeros(5, 2)})[0], {"w": w})
    for state, layout in zip(states, shards, strict=True):
        got, _ = checkpoint.load(tmp_path / "one", blank(state), layout=layout)
        state["w"][layout["['w']"].rows :] = 0.0
        assert_same_bits(got, state)


def test_save_writes_each_byte_once_and_divides_whole_leaves_among_ranks(tmp_path):
    state = {str(i): torch.randn(100 + i) for i in range(40)}
    (manifest, *_) = saved(tmp_path / "one", [state] * 4, [{}] * 4)
    sizes = [0] * 4
    for leaf in manifest.leaves:
        for piece in leaf.pieces:
            sizes[int(piece.file[5:10])] += piece.rows * 4
    assert sum(sizes) == tree.nbytes(state)
    assert max(sizes) - min(sizes) <= 4 * 140  # the largest leaf


def test_saves_of_equal_states_by_ranks_write_equal_bytes(tmp_path):
    state = train_state(7)
    shards = layouts(state, 2)
    for name in ("one", "two"):
        saved(tmp_path / name, [local(state, each) for each in shards], shards, metadata={"a": 1})
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["SHA256SUMS", "manifest.json"] + [
        f"rank-{rank:05d}-00000.safetensors" for rank in (0, 1)
    ]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    sums = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    subprocess.run(sums, cwd=tmp_path / "one", capture_output=True, check=True)


def test_save_writes_large_leaves_in_pieces_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint_pieces, "_MOST_IN_A_PIECE", 48)
    state = {"w": torch.randn(9, 4), "v": torch.randn(2, 50)}
    (manifest, _) = saved(tmp_path / "one", [state] * 2, [{}] * 2)
    rows = {leaf.path: [piece.rows for piece in leaf.pieces] for leaf in manifest.leaves}
    assert rows == {"['v']": [1, 1], "['w']": [3, 3, 3]}
    assert_same_bits(checkpoint.load(tmp_path / "one", blank(state))[0], state)


def test_ranks_write_several_files_if_one_would_be_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["ftrain.distributed.save"], "MOST_IN_A_FILE", 100)
    state = {str(i): torch.randn(20) for i in range(5)}
    (manifest, _) = saved(tmp_path / "one", [state] * 2, [{}] * 2)
    assert [record.name[5:16] for record in manifest.files] == [
        *(f"00000-{i:05d}" for i in range(3)),
        *(f"00001-{i:05d}" for i in range(2)),
    ]
    assert_same_bits(checkpoint.load(tmp_path / "one", blank(state))[0], state)


def test_tied_leaves_stay_tied_when_they_are_saved_and_loaded_as_shards(tmp_path):
    w = torch.randn(3, 4)
    state = {"a": w, "b": [w], "c": w.clone()}
    shards = layouts(state, 4)  # the last rank has no rows, so it does not know the tie
    (manifest, *_) = saved(tmp_path / "one", [local(state, each) for each in shards], shards)
    assert [leaf.alias for leaf in manifest.leaves] == [None, "['a']", None]
    whole, _ = checkpoint.load(tmp_path / "one", blank(state))
    assert whole["b"][0] is whole["a"]
    part, _ = checkpoint.load(tmp_path / "one", blank(local(state, shards[1])), layout=shards[1])
    assert part["b"][0] is part["a"]
    layout = {"['a']": shards[1]["['a']"]}  # one of two tied leaves is whole
    part, _ = checkpoint.load(tmp_path / "one", blank(local(state, layout)), layout=layout)
    assert_same_bits(part, local(state, layout))


def test_load_reads_only_the_pieces_that_hold_rows_of_the_rank(tmp_path):
    state = {"w": torch.randn(8, 100), "v": torch.randn(8)}
    shards = layouts(state, 4)
    saved(tmp_path / "one", [local(state, each) for each in shards], shards)
    flip(tmp_path / "one" / "rank-00003-00000.safetensors")
    for layout in shards[:3]:
        like = local(state, layout)
        assert_same_bits(checkpoint.load(tmp_path / "one", blank(like), layout=layout)[0], like)
    for wrong in (
        lambda: checkpoint.load(tmp_path / "one", blank(local(state, shards[3])), layout=shards[3]),
        lambda: checkpoint.load(tmp_path / "one", blank(state)),
        lambda: checkpoint.verify(tmp_path / "one"),
    ):
        with pytest.raises(CheckpointCorruptError, match="rank-00003-00000"):
            wrong()


def test_every_flipped_byte_of_a_checkpoint_of_ranks_is_found(tmp_path):
    state = train_state(3)
    shards = layouts(state, 2)
    saved(tmp_path / "one", [local(state, each) for each in shards], shards)
    for file in sorted((tmp_path / "one").iterdir()):
        for offset in range(0, file.stat().st_size, 61):
            flip(file, offset)
            with pytest.raises(CheckpointCorruptError):
                checkpoint.load(tmp_path / "one", blank(state), on_change="ignore")
            flip(file, offset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda piece: piece.update(start=1), "expected pieces that cover all its 4 rows"),
        (lambda piece: piece.update(rows=1), "expected pieces that cover all its 4 rows"),
        (lambda piece: piece.update(rows=10**9), "expected pieces that cover all its 4 rows"),
        (lambda piece: piece.update(file="nowhere"), "a size that fits in its file"),
        (lambda piece: piece.update(sha256="0"), "64 hexadecimal digits"),
        (lambda piece: piece.update(begin=-1), "the begin of a piece: expected an integer >= 0"),
        (lambda piece: piece.update(begin=1), "expected the tensor to begin at byte 1"),
        (lambda piece: piece.pop("rows"), "expected entries with the fields"),
    ],
)
def test_manifest_with_wrong_pieces_is_refused(tmp_path, change, message):
    state = {"w": torch.randn(4, 3)}
    shards = layouts(state, 2)
    saved(tmp_path / "one", [local(state, each) for each in shards], shards)
    content = json.loads((tmp_path / "one" / "manifest.json").read_bytes())
    assert content["required_features"] == ["pieces"]
    change(content["leaves"][0]["pieces"][0])
    seal(tmp_path / "one", _json.render(content))
    with pytest.raises(CheckpointCorruptError, match=message):
        checkpoint.load(tmp_path / "one", blank(state))


def test_manifest_whose_pieces_all_refer_to_the_same_bytes_of_a_file_is_refused(tmp_path):
    """Such a manifest would make a load allocate more memory than the files have bytes."""
    saved(tmp_path / "one", [{"w": torch.randn(4, 3)}], [{}])
    content = json.loads((tmp_path / "one" / "manifest.json").read_bytes())
    leaf = content["leaves"][0]
    (piece,) = leaf["pieces"]
    leaf["shape"], leaf["pieces"] = [400, 3], [piece | {"start": 4 * i} for i in range(100)]
    seal(tmp_path / "one", _json.render(content))
    with pytest.raises(CheckpointCorruptError, match="a size that fits"):
        checkpoint.load(tmp_path / "one", {"w": torch.zeros(400, 3)})


def seal(path, manifest):
    (path / "manifest.json").write_bytes(manifest)
    files = sorted(file for file in path.iterdir() if file.name != "SHA256SUMS")
    files.sort(key=lambda file: file.name == "manifest.json")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (path / "SHA256SUMS").write_text("".join(lines))


W = torch.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    ("states", "rows", "message"),
    [
        ([{"w": W}, {"w": W.neg()}], None, r"\['w'\]: expected the bytes of rank 0 in rows 0 to 5"),
        ([{"w": W}, {"v": W}], None, r"\['w'\] is in rank 0, but not in this rank"),
        (
            [{"w": W}, {"w": W.double()}],
            None,
            r"expected the dtype float32, as on rank 0, got float64",
        ),
        (
            [{"w": W}, {"w": W[:3]}],
            None,
            r"expected the shape \[6, 2\], as on rank 0, got \[3, 2\]",
        ),
        ([{"w": W}, {"w": W.t().contiguous().t()}], None, r"expected the strides"),
        (
            [{"w": W[:2]}, {"w": W[3:]}],
            [(0, 2), (3, 3)],
            r"row 2 after the rows of rank 0, got row 3 of rank 1",
        ),
        (
            [{"w": W[:4]}, {"w": W[3:]}],
            [(0, 4), (3, 3)],
            r"row 4 after the rows of rank 0, got row 3 of rank 1",
        ),
        (
            [{"w": W[:4]}, {"w": W[4:5]}],
            [(0, 4), (4, 1)],
            r"row 5 after the rows of rank 1, got nothing",
        ),
    ],
)
def test_save_of_different_states_on_ranks_names_the_difference(tmp_path, states, rows, message):
    shards = [{}, {}] if rows is None else [{"['w']": Shard((6, 2), *each)} for each in rows]
    for error in saved(tmp_path / "one", states, shards):
        assert isinstance(error, (CheckpointRankError, CheckpointMismatchError)), error
        assert re.search(message, str(error)), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["metadata", "step", "metrics"])
def test_save_with_different_arguments_on_ranks_names_the_argument(tmp_path, name):
    values = {"metadata": ({"at": 1}, {"at": 2}), "step": (1, 2), "metrics": ({"a": 1}, {"a": 2})}

    def one(peers):
        given = {"metadata": None, "step": None, "metrics": None} | {name: values[name][peers.rank]}
        content = collect({"w": W}, *given.values(), None)
        return publish(lambda: content, {}, str(tmp_path / "one"), peers)

    for error in each(2, one):
        assert f"{name}: expected" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_save_of_states_with_tied_leaves_on_one_rank_only_is_refused(tmp_path):
    shards = layouts({"a": W, "b": W}, 2)
    states = [local({"a": W, "b": W}, shards[0]), local({"a": W, "b": W.clone()}, shards[1])]
    for error in saved(tmp_path / "one", states, shards):
        assert "expected the same strides and tied leaves on all ranks" in str(error)


def test_second_save_to_a_path_is_refused_unless_the_content_is_the_same(tmp_path):
    assert isinstance(saved(tmp_path / "one", [{"w": W}] * 2, [{}] * 2)[1], checkpoint.Manifest)
    assert isinstance(saved(tmp_path / "one", [{"w": W}] * 2, [{}] * 2)[1], checkpoint.Manifest)
    for error in saved(tmp_path / "one", [{"w": W + 1}] * 2, [{}] * 2):
        assert isinstance(error, checkpoint.CheckpointExistsError)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"['v']": Shard((6, 2), 0, 6)}, "expected paths of leaves, got"),
        ({"['w']": Shard((6, 3), 0, 6)}, "expected a local tensor with 6 rows or more of shape"),
        ({"['w']": Shard((9, 2), 0, 7)}, "expected a local tensor with 7 rows or more"),
    ],
)
def test_save_with_a_layout_that_does_not_fit_the_state_is_refused(tmp_path, layout, message):
    (error,) = saved(tmp_path / "one", [{"w": W}], [layout])
    assert isinstance(error, ValueError)
    assert message in str(error)
    checkpoint.save(tmp_path / "one", {"w": W})
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path / "one", {"w": W}, layout=layout)


@pytest.mark.parametrize("arguments", [((), 0, 0), ((3,), 1, 3), ((3,), -1, 1), ((3,), 0, -1)])
def test_shard_outside_of_its_leaf_is_refused(arguments):
    with pytest.raises(ValueError, match="expected"):
        Shard(*arguments)


def test_shard_with_interleaved_rows_is_refused(tmp_path):
    w = torch.randn(2, 4).t()
    layout = {"['w']": Shard((8, 2), 0, 4)}
    (error,) = saved(tmp_path / "one", [{"w": w}], [layout])
    assert "expected a shard whose rows follow one another in memory" in str(error)
