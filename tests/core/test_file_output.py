"""Test that the files of a run are written under their own name only."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ftrain.core import _file_output

WRITERS: dict[str, Callable[[Path], object]] = {
    "replace": lambda path: _file_output.replace(path, "new\n"),
    "append": lambda path: _file_output.append(path, "new"),
    "keep": lambda path: _file_output.keep(path, 1),
}


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("writer", WRITERS)
def test_writer_keeps_the_file_that_a_link_points_to(
    tmp_path: Path, writer: str, link: Callable[[Path, Path], None]
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "output"
    victim.write_text("one\ntwo\n")
    link(victim, path)
    try:
        WRITERS[writer](path)
    except OSError as error:
        assert link is os.symlink
        assert f"{path}: expected a regular file, got a symbolic link" in str(error)  # noqa: PT017
    else:
        expected = {"replace": "new\n", "append": "one\ntwo\nnew\n", "keep": "one\n"}
        assert path.read_text() == expected[writer]
        assert path.stat().st_nlink == 1
    assert victim.read_text() == "one\ntwo\n"
    assert sorted(os.listdir(tmp_path)) == ["output", "victim"]


@pytest.mark.parametrize("writer", WRITERS)
def test_writer_creates_nothing_where_a_dangling_link_points(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "output"
    path.symlink_to(tmp_path / "elsewhere")
    try:
        WRITERS[writer](path)
    except OSError:
        assert writer != "replace"
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("writer", WRITERS)
def test_writer_refuses_a_pipe_without_waiting(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "output"
    os.mkfifo(path)
    began = time.monotonic()
    with pytest.raises(OSError, match="expected a regular file, got a device"):
        WRITERS[writer](path)
    assert time.monotonic() - began < 60  # a pipe without a reader is waited for without end
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_temporary_file_is_deleted_if_its_writer_raises(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    path.write_text("old")

    def broken() -> None:
        with _file_output.draft(path) as draft:
            assert draft.suffix == ".png"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert os.listdir(tmp_path) == ["curves.png"]
    assert path.read_text() == "old"


def test_concurrent_replacements_leave_the_whole_content_of_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    texts = [str(i) * 10_000 for i in range(4)]
    threads = [threading.Thread(target=_file_output.replace, args=(path, x)) for x in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["result.json"]


def test_temporary_file_never_takes_the_name_of_an_existing_file(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(_file_output.secrets, "token_hex", lambda count: "0" * 2 * count)
    existing = _file_output.new_draft(tmp_path / "a.json")
    existing.write_text("mine")
    with pytest.raises(FileExistsError):
        _file_output.new_draft(tmp_path / "a.json")
    assert existing.read_text() == "mine"
    existing.unlink()
    existing.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        _file_output.new_draft(tmp_path / "a.json")
    assert not (tmp_path / "elsewhere").exists()


def test_publish_refuses_a_temporary_file_that_was_replaced_by_a_link(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "output"
    victim.write_text("mine")
    written = _file_output.new_draft(path)
    written.unlink()
    written.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        _file_output.publish(written, path)
    assert not path.exists()


def test_error_about_a_temporary_file_names_the_file_that_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "output"
    with pytest.raises(FileNotFoundError) as raised:
        _file_output.new_draft(path)
    assert raised.value.filename == str(path)

    def raises(error: OSError) -> None:
        with _file_output.draft(tmp_path / "output"):
            raise error

    for error in (OSError("no number"), FileNotFoundError(errno.ENOENT, "gone", "elsewhere")):
        with pytest.raises(OSError, match="no number|gone") as raised:
            raises(error)
        assert raised.value is error  # it is not about the draft


@pytest.mark.parametrize(("number", "is_raised"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_unsupported_sync_is_ignored_but_other_sync_errors_are_raised(
    tmp_path: Path, monkeypatch, number: int, is_raised: bool
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fsync)
    raised = pytest.raises(OSError, match="no") if is_raised else contextlib.nullcontext()
    with raised:
        _file_output.replace(tmp_path / "output", "new")
    assert (tmp_path / "output").exists() is not is_raised


def test_line_that_does_not_fit_on_the_disk_is_removed_whole(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("one\n")
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if os.fstat(descriptor).st_size >= 6:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data[:1])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full"):
        _file_output.append(path, "two")
    assert path.read_text() == "one\n"
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1]))
    _file_output.append(path, "two")  # a byte at a time
    assert path.read_text() == "one\ntwo\n"


def test_temporary_files_are_removed_once_they_are_older_than_an_hour(
    tmp_path: Path, monkeypatch
) -> None:
    hour, older = (_file_output.new_draft(tmp_path / "a.json") for _ in range(2))
    folder = tmp_path / ".draft-0123456789abcdef"
    folder.mkdir()
    for path, age in ((hour, 3600), (older, 3600.5), (folder, 9999)):
        os.utime(path, (0, 10_000 - age))
    monkeypatch.setattr(_file_output.time, "time", lambda: 10_000)
    _file_output.remove_drafts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([hour, folder])


def test_removal_of_old_temporary_files_keeps_new_ones_and_files_of_other_names(
    tmp_path: Path,
) -> None:
    fresh, old = (_file_output.new_draft(tmp_path / "a.json") for _ in range(2))
    others = [tmp_path / ".draft-notes", tmp_path / "draft-0123456789abcdef"]
    for path in others:
        path.write_text("mine")
    for path in (old, *others):
        os.utime(path, (0, 0))
    _file_output.remove_drafts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([fresh, *others])


def test_line_of_a_terabyte_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("one\n")
    os.truncate(path, 1 << 40)
    assert _file_output.keep(path, 2) == ["one"]
    assert path.read_text() == "one\n"


@pytest.mark.parametrize("writer", WRITERS)
def test_new_file_gets_the_permissions_that_the_umask_leaves(tmp_path: Path, writer: str) -> None:
    before = os.umask(0)
    try:
        WRITERS[writer](tmp_path / "output")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "output").stat().st_mode) == 0o666


@pytest.mark.parametrize("linked", [False, True], ids=["one name", "two names"])
@pytest.mark.parametrize("writer", WRITERS)
def test_writer_closes_every_file_that_it_opens(tmp_path: Path, writer: str, linked: bool) -> None:
    path = tmp_path / "output"
    path.write_text("one\ntwo\n")
    if linked:
        os.link(path, tmp_path / "other")
    before = os.listdir("/proc/self/fd")
    WRITERS[writer](path)
    with pytest.raises(OSError, match="regular file"):
        WRITERS[writer](Path("/dev/full"))
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("writer", ["append", "keep"])
def test_log_without_a_second_name_is_written_in_place(tmp_path: Path, writer: str) -> None:
    """A reader that has the file open, such as `tail -f`, sees what is written."""
    path = tmp_path / "output"
    path.write_text("one\ntwo\n")
    with path.open() as reader:
        WRITERS[writer](path)
        assert reader.read() == {"append": "one\ntwo\nnew\n", "keep": "one\n"}[writer]


def test_keep_creates_the_folders_of_a_log_that_does_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "log"
    for _ in range(2):
        assert _file_output.keep(path, 3) == []
    assert path.read_bytes() == b""


@pytest.mark.parametrize("linked", [False, True], ids=["one name", "two names"])
@pytest.mark.parametrize(
    ("content", "n", "lines", "left"),
    [
        (b"a\nb\nc\n", 2, ["a", "b"], b"a\nb\n"),
        (b"a\nb\nc\n", 3, ["a", "b", "c"], b"a\nb\nc\n"),
        (b"a\nb\nc\n", 9, ["a", "b", "c"], b"a\nb\nc\n"),
        (b"a\nb\nc\n", 0, [], b""),
        (b"a\nb", 2, ["a"], b"a\n"),
        (b"a\n\nb\n", 2, ["a", ""], b"a\n\n"),
        (b"\xff\nb\n", 1, ["\ufffd"], b"\xff\n"),
    ],
)
def test_keep_returns_and_leaves_the_first_complete_lines(
    tmp_path: Path, content: bytes, n: int, lines: list[str], left: bytes, linked: bool
) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    if linked:
        os.link(path, tmp_path / "other")
    assert _file_output.keep(path, n) == lines
    assert path.read_bytes() == left
    assert not linked or (tmp_path / "other").read_bytes() == content


def test_append_to_a_log_of_two_names_copies_all_of_it(tmp_path: Path) -> None:
    path, content = tmp_path / "log", os.urandom(3 << 20) + b"\n"
    path.write_bytes(content)
    os.link(path, tmp_path / "other")
    _file_output.append(path, "new")
    assert path.read_bytes() == content + b"new\n"
    assert (tmp_path / "other").read_bytes() == content


def test_old_link_with_the_name_of_a_temporary_file_is_kept(tmp_path: Path) -> None:
    link, target = tmp_path / ".draft-0123456789abcdef.json", tmp_path / "result.json"
    target.write_text("mine")
    link.symlink_to(target)
    for path in (link, target):
        os.utime(path, (0, 0), follow_symlinks=False)
    _file_output.remove_drafts(tmp_path)
    _file_output.remove_drafts(tmp_path / "missing")
    assert link.is_symlink()


def test_error_of_a_write_to_a_full_disk_names_the_file(tmp_path: Path, monkeypatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full") as raised:
        _file_output.replace(tmp_path / "result.json", "new")
    assert raised.value.filename == str(tmp_path / "result.json")
    assert os.listdir(tmp_path) == []
