"""Test that files of other people are read without waiting and without unbounded memory."""

from __future__ import annotations

import errno
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ftrain.core._regular_files import MOST_CONFIG, read_json, read_lines, read_regular


def test_regular_file_and_a_link_to_it_are_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntwo")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("a", "link"):
        assert read_regular(tmp_path / name, 7) == b"one\ntwo"
        assert list(read_lines(tmp_path / name)) == ["one", "two"]
    with pytest.raises(OSError, match="expected at most 6 bytes, got 7"):
        read_regular(tmp_path / "a", 6)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "b", 6)


def make(kind: str, path: pathlib.Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        place, here = os.path.abspath(path), os.getcwd()
        os.chdir(path.parent)  # the name of a socket has at most 108 bytes
        socket.socket(socket.AF_UNIX).bind(os.path.basename(place))
        os.chdir(here)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/urandom")


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "device"])
def test_irregular_files_are_refused_without_waiting(tmp_path: pathlib.Path, kind: str) -> None:
    make(kind, tmp_path / "a")
    began = time.monotonic()
    for read in (read_json, lambda path: read_regular(path, 10), lambda path: [*read_lines(path)]):
        with pytest.raises(OSError, match=f"expected a regular file, got a {kind}"):
            read(tmp_path / "a")
    assert time.monotonic() - began < 60  # reads of a pipe or a device have no end


def test_sparse_file_of_terabytes_is_refused(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(8 << 40)
    for read in (read_json, lambda path: [*read_lines(path)]):
        with pytest.raises(OSError, match="bytes, got 8,796,093,022,208"):
            read(tmp_path / "a")


@pytest.mark.parametrize(
    ("read", "most"),
    [
        (lambda path: read_regular(path, MOST_CONFIG), 1 << 20),
        (read_json, 64 << 20),
        (lambda path: [*read_lines(path)], 1 << 30),
    ],
    ids=["configuration", "json", "lines"],
)
def test_file_of_one_byte_more_than_the_limit_of_its_kind_is_refused(
    tmp_path: pathlib.Path, read: Callable[[pathlib.Path], Any], most: int
) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(most + 1)  # sparse: it takes no room
    with pytest.raises(OSError, match=f"expected at most {most:,} bytes, got {most + 1:,}"):
        read(tmp_path / "a")


def test_pipe_that_takes_the_place_of_a_file_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is checked before it is opened, and the open file is checked again."""
    (tmp_path / "a").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    before = os.stat(tmp_path / "a")
    monkeypatch.setattr(os, "stat", lambda path, **options: before)
    with pytest.raises(OSError, match="got a pipe"):
        read_regular(tmp_path / "pipe", 10)


def test_line_beyond_the_size_limit_is_skipped_and_the_next_is_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[read_lines.__module__]
    monkeypatch.setattr(module, "_LONGEST_LINE", 8)
    (tmp_path / "a").write_bytes(b"first\n" + b"x" * 30 + b"\nlast\n\n" + b"y" * 8)
    assert list(read_lines(tmp_path / "a")) == ["first", "last", "", "y" * 8]


def test_lines_appended_during_a_read_are_left_for_the_next_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1\n2\n")
    lines = read_lines(path)
    assert next(lines) == "1"
    with path.open("ab") as file:
        file.write(b"3\n" * 100_000)
    assert list(lines) == ["2"]


def test_read_json_raises_value_error_for_deep_nesting_and_invalid_content(
    tmp_path: pathlib.Path,
) -> None:
    for content in (b"[" * 100_000, b"\xff", b"{", b"1" * 10_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"."):
            read_json(tmp_path / "a.json")


def test_pipe_with_a_writer_is_refused(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("text"))
    writer.start()
    with pytest.raises(OSError, match="got a pipe"):
        read_regular(tmp_path / "pipe", 10)
    writer.join()
    os.close(reader)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\r\nb\n", ["a", "b"]),
        (b"a\rb", ["a\rb"]),
        (b" a \n\n\xffb", [" a ", "", "\ufffdb"]),
        (b"", []),
        (b"\n", [""]),
        (b"x" * ((16 << 20) - 1) + b"\nb", ["x" * ((16 << 20) - 1), "b"]),
        (b"x" * (16 << 20) + b"\nb", ["b"]),
    ],
    ids=["two ends", "no end", "bytes", "empty", "one end", "16 MiB", "more than 16 MiB"],
)
def test_lines_are_read_without_their_ends(
    tmp_path: pathlib.Path, content: bytes, lines: list[str]
) -> None:
    (tmp_path / "a").write_bytes(content)
    assert list(read_lines(tmp_path / "a")) == lines


def test_file_that_is_cut_while_it_is_read_ends_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1234567\n" * 100_000)
    lines = read_lines(path)
    next(lines)
    os.truncate(path, 0)
    assert len(list(lines)) < 100_000


@pytest.mark.parametrize(
    ("kind", "code"),
    [("pipe", errno.EINVAL), ("directory", errno.EISDIR), ("device", errno.EINVAL)],
)
def test_error_about_an_irregular_file_has_its_name_and_number(
    tmp_path: pathlib.Path, kind: str, code: int
) -> None:
    make(kind, tmp_path / "a")
    with pytest.raises(OSError, match="regular file") as raised:
        read_regular(tmp_path / "a", 10)
    assert (raised.value.errno, raised.value.filename) == (code, str(tmp_path / "a"))
    (tmp_path / "b").write_bytes(b"12345678901")
    with pytest.raises(OSError, match="got 11") as raised:
        read_regular(tmp_path / "b", 10)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / "b"))
