"""Test the checkpoint store of a run: search, locking, replacement and deletion."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from pathlib import Path

import pytest
import torch

from ftrain import checkpoint
from ftrain.checkpoint import _files
from ftrain.testing import assert_same_bits
from tests.checkpoint.states import filled, flip, train_state

# Search for checkpoints


def test_a_store_in_a_missing_directory_is_empty(tmp_path):
    store = checkpoint.Store(tmp_path / "new")
    assert (store.latest(), store.best(), store.steps()) == (None, None, [])
    with pytest.raises(checkpoint.CheckpointNotFoundError, match="store.load\\(like, default="):
        store.load(like=train_state(0))
    state = train_state(0)
    assert store.load(like=state, default={"at": 0}) == (state, {"at": 0})
    assert not (tmp_path / "new").exists()


def test_store_skips_corrupt_checkpoints_with_a_warning(tmp_path):
    store = filled(tmp_path)
    flip(tmp_path / "step-000000000003" / "tensors-00000.safetensors")
    with pytest.warns(
        checkpoint.CorruptCheckpointWarning, match="step-000000000003 failed verification"
    ):
        assert store.latest() == tmp_path / "step-000000000002"
    with pytest.warns(checkpoint.CorruptCheckpointWarning):
        assert store.best() == tmp_path / "step-000000000002"
    with pytest.warns(checkpoint.CorruptCheckpointWarning):
        state, metadata = store.load(like=train_state(0))
    assert metadata == {"at": 2}
    assert_same_bits(state, train_state(2))
    with pytest.raises(checkpoint.CheckpointCorruptError, match="is damaged or edited"):
        store.load(like=train_state(0), step=3)
    for step in (1, 2):
        (tmp_path / f"step-{step:012d}" / "manifest.json").unlink()
    with pytest.warns(checkpoint.CorruptCheckpointWarning):
        with pytest.raises(checkpoint.CheckpointCorruptError, match="got only damaged ones"):
            store.load(like=train_state(0), default={})  # `default` is not used


def test_saving_a_step_again_requires_equal_content(tmp_path):
    store = filled(tmp_path)
    before = (tmp_path / "step-000000000003" / "SHA256SUMS").stat().st_ino
    store.save(train_state(3), step=3, metadata={"at": 3}, metrics={"loss": -3})
    assert (tmp_path / "step-000000000003" / "SHA256SUMS").stat().st_ino == before
    with pytest.raises(checkpoint.CheckpointExistsError):
        store.save(train_state(4), step=3)
    # A damaged checkpoint is replaced.
    flip(tmp_path / "step-000000000003" / "tensors-00000.safetensors")
    with pytest.warns(checkpoint.CorruptCheckpointWarning, match="replaced"):
        store.save(train_state(4), step=3)
    assert_same_bits(store.load(like=train_state(0), step=3)[0], train_state(4))
    assert not [name for name in os.listdir(tmp_path) if name.startswith((".tmp", ".trash"))]


def test_corrupt_checkpoints_do_not_count_toward_keep_last(tmp_path):
    store = filled(tmp_path, (1, 2), keep_last=2)
    for step in (5, 6, 7):  # directories without a manifest
        (tmp_path / f"step-{step:012d}").mkdir()
    store.save(train_state(3), step=3)
    assert store.steps() == [2, 3, 5, 6, 7]
    with pytest.warns(checkpoint.CorruptCheckpointWarning):
        assert store.latest() == tmp_path / "step-000000000003"


def test_after_deleting_the_latest_step_the_step_before_it_is_the_latest(tmp_path):
    store = filled(tmp_path)
    store.delete(3)
    assert store.load(like=train_state(0))[1] == {"at": 2}
    with pytest.raises(
        checkpoint.CheckpointNotFoundError, match=r"expected one of \[1, 2\], .* got 3"
    ):
        store.delete(3)


def test_store_refuses_loading_from_a_missing_directory_and_paths_that_are_not_stores(
    tmp_path: Path,
) -> None:
    state = {"w": torch.ones(2)}
    missing = checkpoint.Store(tmp_path / "none")
    with pytest.raises(checkpoint.CheckpointNotFoundError, match="the directory does not exist"):
        missing.load(like=state)
    with checkpoint.Store(tmp_path / "store") as store:
        path = store.save(state, step=1)
        with pytest.raises(
            checkpoint.CheckpointMismatchError, match="got a function. Call it: like=flip"
        ):
            store.load(like=flip)
    with pytest.raises(ValueError, match=r"got the single checkpoint .* Write Store\("):
        checkpoint.Store(path)
    (tmp_path / "file.py").write_text("")
    with pytest.raises(ValueError, match=r"got the file .*file\.py"):
        checkpoint.Store(tmp_path / "file.py")


# Locks


def test_second_writer_of_a_store_raises(tmp_path):
    first = filled(tmp_path)
    second = checkpoint.Store(tmp_path)
    assert second.load(like=train_state(0))[1] == {"at": 3}  # reading needs no lock
    with pytest.raises(checkpoint.CheckpointLockedError, match=r"store.close\(\)"):
        second.save(train_state(9), step=9)
    with pytest.raises(checkpoint.CheckpointLockedError):
        second.delete(1)
    first.close()
    second.save(train_state(9), step=9)
    with pytest.raises(checkpoint.CheckpointLockedError):
        first.save(train_state(10), step=10)
    del second  # a deleted store holds no lock
    first.save(train_state(10), step=10)


def test_store_lock_ends_with_its_process_even_if_child_processes_still_run(tmp_path):
    ready, release = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        store = filled(tmp_path)
        if os.fork() == 0:  # like a data loader's worker that outlives its parent
            os.close(release[1])
            os.read(release[0], 1)
            os._exit(0)
        os.write(ready[1], b"x")
        time.sleep(600)
        del store
    os.read(ready[0], 1)
    with pytest.raises(checkpoint.CheckpointLockedError):
        checkpoint.Store(tmp_path).save(train_state(9), step=9)
    os.kill(child, 9)
    os.waitpid(child, 0)
    checkpoint.Store(tmp_path).save(train_state(9), step=9)
    for end in (*ready, *release):
        os.close(end)


@pytest.mark.parametrize("again", [False, True], ids=["deleted", "made anew by another"])
def test_a_store_whose_directory_was_deleted_refuses_to_write(tmp_path, again):
    """Two stores once wrote to one directory and deleted each other's checkpoints."""
    store = filled(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    other = filled(tmp_path / "run", (7,)) if again else None
    for act in (lambda: store.save(train_state(4), step=4), lambda: store.delete(7)):
        with pytest.raises(checkpoint.CheckpointLockedError, match="no longer the directory"):
            act()
    assert store.steps() == ([7] if again else [])
    store.close()
    if other is not None:
        with pytest.raises(checkpoint.CheckpointLockedError, match="is locked by another process"):
            store.save(train_state(4), step=4)
        other.close()
    store.save(train_state(4), step=4)
    assert store.load(like=train_state(0), step=4)[0].step == 4


# Replacement of checkpoints


def test_save_with_replace_replaces_the_checkpoint_of_a_step(tmp_path):
    with filled(tmp_path) as store:
        path = store.save(
            train_state(9), step=3, metadata={"at": 9}, metrics={"loss": -9}, replace=True
        )
        assert path == store.latest() == tmp_path / "step-000000000003"
        loaded, metadata = store.load(like=train_state(0))
        assert_same_bits(loaded, train_state(9))
        assert metadata == {"at": 9}
        # A step without a checkpoint may be saved with `replace`, too.
        store.save(train_state(4), step=4, metrics={"loss": 0}, replace=True)
        assert store.steps() == [2, 3, 4]
    assert sorted(os.listdir(tmp_path)) == [".lock", *(f"step-{s:012d}" for s in (2, 3, 4))]


def test_a_replaced_checkpoint_is_ranked_by_its_new_metrics(tmp_path):
    with filled(tmp_path, keep_last=1, keep_best=1) as store:
        store.save(train_state(3), step=3, metrics={"loss": 5}, replace=True)
        store.save(train_state(4), step=4, metrics={"loss": 4})
        store.save(train_state(5), step=5, metrics={"loss": 6})
        assert store.steps() == [4, 5]


def test_an_interrupted_replacement_is_completed(tmp_path):
    """The writer died when the new checkpoint was durable and the old one still existed."""
    filled(tmp_path).close()
    with checkpoint.Store(tmp_path / "elsewhere") as other:
        path = other.save(train_state(9), step=3, metadata={"at": 9})
    path.rename(tmp_path / "step-000000000003.new")
    path.parent.joinpath(".lock").unlink()
    path.parent.rmdir()
    store = checkpoint.Store(tmp_path)
    for found in (store.load(like=train_state(0)), store.load(like=train_state(0), step=3)):
        assert found[1] == {"at": 9}
    assert store.latest().name == "step-000000000003.new"
    assert store.steps() == [1, 2, 3]
    store.save(train_state(4), step=4)
    assert sorted(os.listdir(tmp_path)) == [".lock", *(f"step-{s:012d}" for s in (2, 3, 4))]
    assert store.load(like=train_state(0), step=3)[1] == {"at": 9}


def test_a_corrupt_replacement_keeps_the_old_checkpoint(tmp_path):
    store = filled(tmp_path)
    shutil.copytree(tmp_path / "step-000000000003", new := tmp_path / "step-000000000003.new")
    flip(new / "tensors-00000.safetensors")
    with pytest.warns(checkpoint.CorruptCheckpointWarning, match=r"003\.new failed verification"):
        assert store.load(like=train_state(0))[1] == {"at": 3}
    with pytest.warns(checkpoint.CorruptCheckpointWarning, match="it is deleted"):
        store.delete(1)
    assert not new.exists()
    assert store.steps() == [2, 3]


@pytest.mark.parametrize("step", [None, 3])
def test_loading_a_checkpoint_replaced_during_reading_returns_the_new_one(tmp_path, step):
    """The reader once took the vanishing files for damage and loaded an older checkpoint."""
    store = filled(tmp_path)
    read = checkpoint._read.OpenCheckpoint.read
    times = []

    def replaced(self, place):
        times.append(1)
        if len(times) == 1:
            store.save(train_state(9), step=3, metadata={"at": 9}, replace=True)
        return read(self, place)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(checkpoint._read.OpenCheckpoint, "read", replaced)
        found, metadata = checkpoint.Store(tmp_path).load(like=train_state(0), step=step)
    assert metadata == {"at": 9}
    assert_same_bits(found, train_state(9))


@pytest.mark.parametrize("replace", [False, True])
def test_a_checkpoint_deleted_during_reading_is_not_reported_as_corrupt(tmp_path, replace):
    """A store searches again, but loading by path once reported wrong bytes."""
    store = filled(tmp_path, (3,), keep_last=1)
    read = checkpoint._read.OpenCheckpoint.read

    def deleted(self, place):
        if replace:
            store.save(train_state(9), step=3, replace=True)
        else:
            store.save(train_state(4), step=4)
        return read(self, place)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint._read.OpenCheckpoint, "read", deleted)
        for act in (checkpoint.verify, lambda path: checkpoint.load(path, train_state(0))):
            with pytest.raises(checkpoint.CheckpointNotFoundError, match="while it was read"):
                act(tmp_path / "step-000000000003")
            store.close()
            shutil.rmtree(tmp_path)
            store = filled(tmp_path, (3,), keep_last=1)


def test_load_finds_the_new_checkpoint_if_the_listed_one_is_deleted(tmp_path):
    """With keep_last=1, a reader that had listed the old checkpoint once found none."""
    store = filled(tmp_path, (1,), keep_last=1)
    names = _files.Files.list
    saved = []

    def listed(self, path):
        found = names(self, path)
        if path == str(tmp_path) and not saved:
            saved.append(2)
            store.save(train_state(2), step=2, metadata={"at": 2})
        return found

    with pytest.MonkeyPatch.context() as patch:
        reader = checkpoint.Store(tmp_path)
        patch.setattr(_files.Files, "list", listed)
        assert reader.load(like=train_state(0))[1] == {"at": 2}


@pytest.mark.parametrize("how", ["policy", "delete", "replace"])
@pytest.mark.parametrize("what", ["link to a checkpoint", "link to nothing", "file"])
def test_deleting_a_link_keeps_the_checkpoint_it_points_to(tmp_path, what, how):
    """Deletion through the link once removed the files of a checkpoint elsewhere."""
    elsewhere = tmp_path / "elsewhere" / "one"
    checkpoint.save(elsewhere, train_state(1), metrics={"loss": 1})
    store = checkpoint.Store(tmp_path / "run", keep_last=1)
    store.save(train_state(0), step=0)
    link = tmp_path / "run" / "step-000000000001"
    if what == "file":
        link.touch()
    else:
        link.symlink_to(elsewhere if what == "link to a checkpoint" else tmp_path / "nothing")
    if how == "delete":
        store.delete(1)
    else:
        store.save(train_state(2), step=1 if how == "replace" else 2, replace=how == "replace")
        if how == "policy" and what != "link to a checkpoint":
            store.delete(1)  # the policy keeps checkpoints that it cannot read
    store.close()
    assert checkpoint.load(elsewhere, train_state(0))[0].step == 1
    left = {"delete": [0], "replace": [1], "policy": [2]}[how]
    assert os.listdir(tmp_path / "elsewhere") == ["one"]
    assert sorted(os.listdir(store.directory)) == [".lock", *(f"step-{s:012d}" for s in left)]


@pytest.mark.parametrize("what", ["file", "pipe", "link to nothing"])
def test_save_deletes_a_file_or_link_that_has_the_name_of_a_checkpoint_to_replace(tmp_path, what):
    """Such a file once made every save fail."""
    store = filled(tmp_path, (1, 2))
    for name in ("step-000000000002.new", "step-000000000003"):
        make = {"file": Path.touch, "pipe": os.mkfifo}.get(what)
        make(tmp_path / name) if make else (tmp_path / name).symlink_to(tmp_path / "nothing")
    with pytest.warns(checkpoint.CorruptCheckpointWarning, match=r"002\.new .* it is deleted"):
        with pytest.warns(checkpoint.CorruptCheckpointWarning, match="003 .* it is replaced"):
            store.save(train_state(3), step=3)
    assert sorted(os.listdir(tmp_path)) == [".lock", *(f"step-{s:012d}" for s in (1, 2, 3))]
    assert_same_bits(store.load(like=train_state(0))[0], train_state(3))


@pytest.mark.parametrize("what", ["file", "link to nothing", "link to a file"])
def test_store_skips_other_files_named_like_a_checkpoint(tmp_path, what):
    """The search for a readable checkpoint once never ended."""
    store = filled(tmp_path, (1, 2))
    odd = tmp_path / "step-000000000005"
    if what == "file":
        odd.touch()
    else:
        odd.symlink_to(tmp_path / (".lock" if what == "link to a file" else "nothing"))
    with pytest.warns(checkpoint.CorruptCheckpointWarning, match="000005 failed verification"):
        assert store.load(like=train_state(0))[1] == {"at": 2}
    with pytest.raises(checkpoint.CheckpointError):
        store.load(like=train_state(0), step=5)
