"""Test that damaged and malicious data files raise one error with the path, before using much memory."""

from __future__ import annotations

import errno
import gzip
import io
import os
import pathlib
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ftrain import checkpoint, data
from ftrain.core.errors import DataError
from ftrain.data import _files, sources
from tests.data.campaign_files import campaign


def npy(header: str, body: bytes = bytes(64)) -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def head(shape: str, dtype: str = "<f4") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1"),  # a TokenError
        npy("(" * 300),  # a MemoryError of Python's parser
        npy(head("(99999999999999999999,)")),  # an OverflowError
        npy(head("(-1, 2)")),
        npy(head("(2**62,)")),
        npy(head("(1099511627776,)")),
        npy(head("(True,)")),
        npy(head("(3,)", "<M8[s]")),
        npy(head("(3,)", "|O")),
        npy(head("(3,)", "(((")),
        npy("\xff" * 40),
        b"\x93NUMPY\x03\x00" + npy(head("(3,)"))[8:],
        b"\x93NUMPY\x09\x00" + npy(head("(3,)"))[8:],
    ],
)
def test_damaged_header_of_an_array_raises_data_error(
    tmp_path: pathlib.Path, content: bytes
) -> None:
    path = tmp_path / "it.npy"
    path.write_bytes(content)
    for mmap in (False, True):
        with pytest.raises(DataError, match=r"it\.npy"):
            data.npy(path, mmap=mmap)
    with zipfile.ZipFile(tmp_path / "it.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(DataError, match=r"it\.npz.* array 'x'"):
        data.npz(tmp_path / "it.npz")


def _zip(edit: Callable[[zipfile.ZipFile], Any]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        edit(archive)
    return file.getvalue()


def _encrypted() -> bytes:
    content = bytearray(_zip(lambda archive: archive.writestr("x.npy", npy(head("(16,)")))))
    for at in (6, content.index(b"PK\x01\x02") + 8):
        content[at] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_zip(lambda archive: archive.writestr("x.npy", b"text")), "'x' is damaged"),
        (_zip(lambda archive: archive.writestr("notes.txt", b"text")), "'notes.txt' is damaged"),
        (_zip(lambda archive: None), "expected arrays, got none"),
        (_encrypted(), "'x' is damaged.*encrypted"),
    ],
)
def test_zip_that_holds_no_arrays_raises_data_error(
    tmp_path: pathlib.Path, content: bytes, says: str
) -> None:
    (tmp_path / "it.npz").write_bytes(content)
    with pytest.raises(DataError, match=says):
        data.npz(tmp_path / "it.npz")


def test_data_source_refuses_a_file_with_a_single_number_among_its_arrays(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros(4), scale=np.float32(2))
    assert data.npz(path)["scale"] == 2
    with pytest.raises(DataError, match=r"x\.npz: expected arrays with .* number 'scale'"):
        sources.arrays(path, held_out=path)


GIB = 1 << 30


def _npz_bomb() -> bytes:
    """Return a zip of a few kB that says that it unpacks to 8 GiB."""
    content = bytearray(_zip(lambda archive: archive.writestr("x.npy", npy(head(f"({GIB},)")))))
    central = content.index(b"PK\x01\x02")
    for at in (22, central + 24):
        content[at : at + 4] = struct.pack("<I", 0xFFFF0000)
    return bytes(content)


def _png_bomb() -> bytes:
    """Return a PNG file whose comment unpacks to a gigabyte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(bytes(1 << 24)) for _ in range(8)) + packer.flush()
    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    body = chunk(b"zTXt", b"a\0\0" + text)
    pixels = chunk(b"IDAT", zlib.compress(bytes(20)))
    return b"\x89PNG\r\n\x1a\n" + size + body + pixels + chunk(b"IEND", b"")


def _large_png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (10, 10)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def _read_image(path: pathlib.Path) -> Any:
    return data.images(path.parent.parent)[0]


BOMBS: dict[str, tuple[str, bytes, Callable[[pathlib.Path], Any]]] = {
    "npz": ("x.npz", _npz_bomb(), data.npz),
    "npy": ("x.npy", npy(head(f"({GIB},)")), data.npy),
    "idx": ("x", b"\0\0\x0e\x01" + struct.pack(">I", GIB), data.idx),
    "gz": ("x.gz", gzip.compress(b"\0\0\x0e\x01" + struct.pack(">I", GIB)), data.idx),
    "png": ("x.png", _png_bomb(), _read_image),
    "large png": ("x.png", _large_png(), _read_image),
}


@pytest.mark.parametrize("name", BOMBS)
def test_decompression_bomb_is_refused_before_it_is_unpacked(
    tmp_path: pathlib.Path, name: str
) -> None:
    file, content, read = BOMBS[name]
    path = tmp_path / "photos" / "a" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=file):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


def test_content_larger_than_the_memory_is_refused_with_the_remedy(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are consistent, and a larger machine could unpack them."""
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros(10_000))
    np.save(tmp_path / "x.npy", np.zeros(10_000))
    image = bytes([0, 0, 8, 1]) + struct.pack(">I", 80_000) + bytes(80_000)
    (tmp_path / "x.gz").write_bytes(gzip.compress(image))
    (tmp_path / "x.csv").write_text("a\n" + "1\n" * 30_000)
    (tmp_path / "x.txt").write_text("a" * 30_000)
    monkeypatch.setattr(_files, "total_memory", lambda: 50_000)
    readers = {
        ".npz": data.npz,
        ".npy": data.npy,
        ".gz": data.idx,
        ".csv": data.csv,
        ".txt": data.text,
    }
    for suffix, read in readers.items():
        with pytest.raises(DataError, match=rf"x\{suffix}: expected content that fits in memory"):
            read(tmp_path / f"x{suffix}")
    assert len(data.npy(tmp_path / "x.npy", mmap=True)) == 10_000
    assert len(data.text(tmp_path / "x.txt", unit="bytes")) == 30_000


def test_operating_system_error_is_not_reported_as_a_damaged_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "x.txt").write_text("text")
    monkeypatch.setattr(pathlib.Path, "read_text", broken)
    with pytest.raises(DataError, match=r"x\.txt: cannot be read: Input/output error"):
        data.text(tmp_path / "x.txt")


@pytest.mark.parametrize(
    "read",
    [data.npz, data.npy, data.safetensors, data.csv, data.text, data.tokens, data.idx],
)
def test_array_and_table_readers_refuse_pipes_and_devices(
    tmp_path: pathlib.Path, read: Any
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(DataError, match="expected a regular file, got a pipe"):
            read(tmp_path / name)


def test_message_of_a_damaged_state_dict_is_short_and_gives_no_dangerous_advice(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.zeros(3), "f": zlib.crc32}, path)
    with pytest.raises(checkpoint.CheckpointCorruptError, match=r"model\.pt") as caught:
        checkpoint.read_state_dict(path, format="torch")
    assert "weights_only" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_state_dict_with_a_negative_file_offset_is_reported_as_damaged(
    tmp_path: pathlib.Path,
) -> None:
    """Torch seeks to the negative position, which the operating system refuses."""
    path = tmp_path / "model.pt"
    with pytest.MonkeyPatch.context() as patch:
        torch.save({"w": torch.zeros(3)}, path)
        patch.setattr(torch, "load", lambda file, **_: os.lseek(file.fileno(), -5, os.SEEK_SET))
        with pytest.raises(checkpoint.CheckpointCorruptError, match=r"model\.pt.*Invalid argument"):
            checkpoint.read_state_dict(path, format="torch")


def test_state_dict_that_expands_to_a_huge_tensor_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"mask": torch.ones(1).expand(1000, 1000)}, path)
    assert checkpoint.read_state_dict(path, format="torch")["mask"].shape == (1000, 1000)
    torch.save({"w": torch.ones(1).expand(1 << 40)}, path)
    with pytest.raises(checkpoint.CheckpointCorruptError, match=r"model\.pt.* 'w' of shape"):
        checkpoint.read_state_dict(path, format="torch")


def test_mutated_files_are_read_or_refused_with_an_error_that_names_them() -> None:
    """The short form of `python -m tests.data.campaign_files`."""
    result = campaign(1300, seed=1)
    assert (result.other, result.wrong, result.slow) == (0, 0, 0)
    assert result.read > 100
    assert result.refused > 500
    assert result.megabytes < 1024
