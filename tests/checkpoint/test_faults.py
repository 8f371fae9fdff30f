"""Test saves in which each file operation fails once: the old or the new checkpoint loads."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ftrain import checkpoint, tree
from ftrain.checkpoint import _files
from ftrain.testing import assert_same_bits
from tests.checkpoint.faults import Failing
from tests.checkpoint.states import train_state

CODES = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, None)


def fill(directory: Path) -> None:
    with checkpoint.Store(directory, keep_last=2) as store:
        for step in (1, 2):
            store.save(train_state(step), step=step, metadata={"step": step})


def save_third(directory: Path) -> None:
    """Save step 3, which deletes step 1."""
    with checkpoint.Store(directory, keep_last=2) as store:
        store.save(train_state(3), step=3, metadata={"step": 3})


def replace_second(directory: Path) -> None:
    """Replace step 2 with the state of step 3."""
    with checkpoint.Store(directory, keep_last=2) as store:
        store.save(train_state(3), step=2, metadata={"step": 3}, replace=True)


def operations(act: Callable[[Path], None], directory: Path) -> list[str]:
    fill(directory)
    counting = Failing(-1, None)
    with _files.replaced(counting):
        act(directory)
    return counting.operations


@pytest.mark.parametrize("act", [save_third, replace_second])
def test_saves_in_the_fault_tests_perform_every_kind_of_file_operation(tmp_path, act):
    found = operations(act, tmp_path)
    assert {
        "open", "write", "fsync", "fsync directory", "rename", "unlink", "mkdir", "rmdir", "close",
        "lock", "list",
    } <= set(found)  # fmt: skip
    assert found.count("fsync") == 3
    assert found.count("fsync directory") == 2


@pytest.mark.parametrize(
    ("code", "sticky"),
    [*((code, False) for code in CODES), (errno.ENOSPC, True)],
    ids=["ENOSPC", "EIO", "EACCES", "EROFS", "short", "disk full"],
)
@pytest.mark.parametrize("act", [save_third, replace_second])
def test_failure_of_any_file_operation_during_a_save_keeps_a_loadable_checkpoint(
    memory_path, act, code, sticky
):
    """With `sticky`, every later operation of the same kind fails as well."""
    count = len(operations(act, memory_path / "counted"))
    fill(memory_path / "two")
    refused = 0
    for k in range(count):
        directory = memory_path / str(k)
        shutil.copytree(memory_path / "two", directory)
        state = train_state(3)
        before = tree.digest(state)
        failing = Failing(k, code, sticky)
        error = None
        with _files.replaced(failing), warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                act(directory)
            except checkpoint.CheckpointError as found:
                error = found
        assert tree.digest(state) == before
        where = f"operation {k}, {failing.operations[k]}: {error}"
        if error is not None:
            assert isinstance(
                error, (checkpoint.CheckpointWriteError, checkpoint.CheckpointReadError)
            )
            assert error.errno == code, where
            assert error.path.startswith(str(directory)), where
            assert str(directory) in str(error)
            assert os.strerror(code) in str(error)
            refused += 1
        assert code is not None or error is None, where  # short writes are continued
        store = checkpoint.Store(directory)
        loaded, metadata = store.load(like=train_state(0))
        expected = metadata["step"]
        assert expected in (2, 3), where
        assert expected == 3 or error is not None, where
        assert_same_bits(loaded, train_state(expected), where)
        for step in store.steps():
            store.load(like=train_state(0), step=step)
        left = [name for name in os.listdir(directory) if name.startswith((".tmp", ".trash"))]
        if not (sticky and failing.failed in ("unlink", "rmdir", "list", "rename")):
            assert not left, where
        # The next save, on a disk without faults, deletes the files that could not be deleted.
        with store:
            store.save(train_state(4), step=4)
        assert sorted(os.listdir(directory)) == [
            ".lock",
            *(f"step-{s:012d}" for s in store.steps()),
        ]
        assert_same_bits(store.load(like=train_state(0))[0], train_state(4), where)
    assert (refused > 10) == (code is not None)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_failed_save_leaves_no_temporary_files(memory_path, code):
    for k in range(100):
        failing = Failing(k, code)
        path = memory_path / "made" / f"{k}"
        try:
            with _files.replaced(failing):
                checkpoint.save(path, train_state(1))
        except checkpoint.CheckpointWriteError as refused:
            found = (refused.errno, path.exists())
            assert found == (code, False), failing.operations[k]
        else:
            checkpoint.verify(path)
            if failing.failed is None:
                break
        if path.parent.exists():
            assert [p for p in os.listdir(path.parent) if p.startswith(".")] == []
    assert failing.failed is None


def test_save_raises_for_a_write_error_that_only_an_fsync_before_the_last_one_reports(
    memory_path, monkeypatch
):
    """Linux reports a failed write-back once for each open file, so the last sync may succeed."""
    from ftrain.checkpoint import _hashing

    monkeypatch.setattr(_hashing, "_BETWEEN_SYNCS", 1000)
    state = {str(i): torch.zeros(500) for i in range(20)}
    syncs = Failing(-1, None)
    with _files.replaced(syncs):
        checkpoint.save(memory_path / "one", state)
    assert syncs.operations.count("fsync") > 3
    for i, k in enumerate(k for k, name in enumerate(syncs.operations) if name == "fsync"):
        with _files.replaced(Failing(k, errno.EIO)):
            try:
                checkpoint.save(memory_path / f"two{i}", state)
            except checkpoint.CheckpointWriteError:
                assert os.listdir(memory_path) == ["one"]
                continue
        checkpoint.verify(memory_path / f"two{i}")  # the faulty operation was not a sync this time
        shutil.rmtree(memory_path / f"two{i}")


def test_a_failed_export_leaves_no_temporary_files(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.write_state_dict(path, {"w": train_state(1).params["w"]})
    before = path.read_bytes()
    checkpoint.write_state_dict(tmp_path / "new", {"w": train_state(2).params["w"]})
    after = (tmp_path / "new").read_bytes()
    (tmp_path / "new").unlink()
    for k in range(100):
        failing = Failing(k, errno.ENOSPC)
        try:
            with _files.replaced(failing):
                checkpoint.write_state_dict(path, {"w": train_state(2).params["w"]})
        except checkpoint.CheckpointWriteError as refused:
            found = refused.errno
            assert found == errno.ENOSPC
            assert os.listdir(tmp_path) == ["model.safetensors"]
            # The new bytes are there if only the sync of the directory failed.
            assert path.read_bytes() in (before, after)
        else:
            assert os.listdir(tmp_path) == ["model.safetensors"]
            assert path.read_bytes() == after
            if failing.failed is None:
                break
    assert failing.failed is None


def test_a_save_beyond_rlimit_fsize_raises_and_leaves_no_files(tmp_path):
    """Beyond RLIMIT_FSIZE the first write is short and the next one is refused."""
    import resource
    import signal

    checkpoint.save(tmp_path / "small", train_state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(checkpoint.CheckpointWriteError, match="File too large") as caught:
            checkpoint.save(tmp_path / "large", {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.path.endswith("tensors-00000.safetensors")
    assert os.listdir(tmp_path) == ["small"]
