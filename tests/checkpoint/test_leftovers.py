"""Test that the next writer deletes the temporary files of a killed writer, and no other files."""

from __future__ import annotations

import errno
import os
import signal
import threading

import pytest
import torch

from ftrain import checkpoint
from ftrain.checkpoint import _files
from tests.checkpoint.states import train_state

WEIGHTS = {"w": torch.ones(3)}


def export(directory):
    checkpoint.write_state_dict(directory / "model.safetensors", WEIGHTS)


def export_pickle(directory):
    checkpoint.write_state_dict(directory / "model.pt", WEIGHTS, format="torch")


def save(directory):
    checkpoint.save(directory / "one", WEIGHTS)


def save_to_a_store(directory):
    checkpoint.Store(directory).save(WEIGHTS, step=1)


@pytest.mark.parametrize("after", [export, save, save_to_a_store])
@pytest.mark.parametrize("killed", [export, export_pickle, save, save_to_a_store])
def test_the_next_writer_deletes_files_of_a_killed_writer(tmp_path, killed, after):
    child = os.fork()
    if child == 0:
        _files.Files.sync = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        killed(tmp_path)
        os._exit(1)
    os.waitpid(child, 0)
    (left,) = (name for name in os.listdir(tmp_path) if name.startswith(".tmp"))
    assert os.listdir(tmp_path / left)
    after(tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".tmp")]


@pytest.mark.parametrize("write", [export, save, save_to_a_store])
def test_saving_keeps_directories_of_other_programs_named_like_its_temporary_directories(
    tmp_path, write
):
    """Saving once deleted every directory `.tmp-...` and `.trash-...` beside a checkpoint."""
    elsewhere = tmp_path / "elsewhere"
    kept = [tmp_path / name for name in (".tmp-mine", ".trash-1000", ".tmp-7-notmine1")]
    for directory in (*kept, elsewhere):
        directory.mkdir()
        (directory / "file").touch()
    (tmp_path / ".tmp-7-abcdef01").symlink_to(elsewhere)
    (tmp_path / ".tmp-name\n-7-abcdef02").mkdir()  # a name of an earlier version
    write(tmp_path)
    assert all((directory / "file").exists() for directory in (*kept, elsewhere))
    assert not (tmp_path / ".tmp-name\n-7-abcdef02").exists()


@pytest.mark.parametrize("length", [200, 255])
def test_save_accepts_file_names_of_the_maximum_length_of_the_file_system(tmp_path, length):
    """The name was once part of the temporary directory's name, which became too long."""
    checkpoint.save(tmp_path / ("n" * length), WEIGHTS)
    checkpoint.write_state_dict(tmp_path / ("é" * (length // 2)), WEIGHTS)
    with pytest.raises(checkpoint.CheckpointWriteError, match="Choose a shorter name"):
        checkpoint.save(tmp_path / ("n" * 256), WEIGHTS)


@pytest.mark.parametrize("swept", [1, 3])
@pytest.mark.parametrize("held", [False, True])
def test_a_save_retries_if_its_directory_is_deleted_before_it_is_locked(
    tmp_path, monkeypatch, swept, held
):
    """Between mkdir and lock, the directory looks like that of a dead writer."""
    make = _files.Files.make_directory
    sweepers = []

    def made(self, path):
        make(self, path)
        if ".tmp" in path and len(sweepers) < swept:
            sweepers.append(checkpoint.Lock.directory(path))
            if not held:
                sweepers[-1].close()
                os.rmdir(path)

    monkeypatch.setattr(_files.Files, "make_directory", made)
    save(tmp_path)
    assert len(sweepers) == swept
    assert os.listdir(tmp_path) == ["one"]
    checkpoint.verify(tmp_path / "one")


def test_a_save_raises_if_its_directory_is_deleted_at_every_retry(tmp_path, monkeypatch):
    make = _files.Files.make_directory
    monkeypatch.setattr(
        _files.Files, "make_directory", lambda self, path: (make(self, path), os.rmdir(path))
    )
    with pytest.raises(
        checkpoint.CheckpointWriteError, match="other processes keep deleting"
    ) as caught:
        save(tmp_path)
    assert caught.value.errno == errno.EAGAIN
    assert os.listdir(tmp_path) == []


def test_lock_has_one_holder_at_a_time_and_reports_a_deleted_or_replaced_file(tmp_path):
    first = checkpoint.Lock.file(tmp_path / ".lock")
    assert first.held
    assert not first.lost()
    second = checkpoint.Lock.file(tmp_path / ".lock")
    assert not second.held
    second.close()
    (tmp_path / ".lock").rename(tmp_path / "moved")
    assert first.lost()
    with checkpoint.Lock.file(tmp_path / ".lock") as third:
        assert (first.held, third.held, third.lost()) == (True, True, False)
    first.close()
    first.close()
    assert (first.held, first.lost()) == (False, True)


def test_saving_keeps_the_temporary_directory_of_a_running_save(tmp_path):
    """Two saves run side by side in one directory."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(_files.Files):
        def sync(self, descriptor, path):
            if threading.current_thread().name == "slow" and path.endswith("safetensors"):
                entered.set()
                assert go_on.wait(20)
            super().sync(descriptor, path)

    (tmp_path / ".tmp-left-1-abcdef01").mkdir()
    (tmp_path / ".trash-1-abcdef01").mkdir()
    (tmp_path / ".trash-1-abcdef01" / "file").write_text("")
    with _files.replaced(Slow()):
        thread = threading.Thread(
            target=lambda: checkpoint.save(tmp_path / "a", train_state(1)), name="slow"
        )
        thread.start()
        assert entered.wait(20)
        checkpoint.save(tmp_path / "b", train_state(2))
        go_on.set()
        thread.join()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    checkpoint.verify(tmp_path / "a")
