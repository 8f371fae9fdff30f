"""Test file readers: round trips, and errors with file, position and remedy."""

from __future__ import annotations

import gzip
import struct
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ftrain import data
from ftrain.core.errors import DataError
from ftrain.testing import assert_same_bits
from tests.data.test_table import table

# Arrays.


def test_array_files_survive_a_round_trip(tmp_path):
    arrays = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "big endian": np.arange(3, dtype=">i4"),
        "bool": np.array([True, False]),
        "unsigned": np.array([1, 2**16 - 1], dtype=np.uint16),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez_compressed(tmp_path / "c.npz", **arrays)
    for name in ("a.npz", "c.npz"):
        found = data.npz(tmp_path / name)
        assert {key: value.tolist() for key, value in found.items()} == {
            key: value.tolist() for key, value in arrays.items()
        }
    np.save(tmp_path / "f.npy", arrays["f"])
    for mmap in (False, True):
        assert_same_bits(data.npy(tmp_path / "f.npy", mmap=mmap), torch.from_numpy(arrays["f"]))
    save_file({"x": torch.arange(3)}, tmp_path / "s.safetensors")
    assert data.safetensors(tmp_path / "s.safetensors")["x"].tolist() == [0, 1, 2]


def test_writes_to_a_memory_mapped_array_do_not_change_the_file(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    data.npy(tmp_path / "x.npy", mmap=True)[0] = 1
    assert data.npy(tmp_path / "x.npy").tolist() == [0, 0, 0]


def write_pickle(path):
    np.savez(path, x=np.array([{"a": 1}], dtype=object))


def write_words(path):
    np.savez(path, x=np.array(["a", "b"]))


def write_flipped(path):
    np.savez(path, x=np.zeros(1000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_cut(path):
    np.savez(path, x=np.zeros(1000))
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_pickle, "'x' holds Python objects, which only pickle could load"),
        (write_words, "array 'x': expected a dtype that torch supports, got <U1"),
        (write_flipped, "the array 'x' is damaged"),
        (write_cut, "expected an .npz file"),
        (lambda path: path.write_bytes(b""), "expected an .npz file"),
    ],
)
def test_npz_refuses_damaged_files_with_their_path(tmp_path, write, message):
    path = tmp_path / "it.npz"
    write(path)
    with pytest.raises(DataError, match=message) as caught:
        data.npz(path)
    assert str(path) in str(caught.value)


def test_npy_and_safetensors_refuse_damaged_files_with_their_path(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(1000))
    whole = (tmp_path / "x.npy").read_bytes()
    for content in (whole[:200], whole[:30], b"", b"x" * 1000, whole[:8] + b"\xff" * 100):
        (tmp_path / "x.npy").write_bytes(content)
        for mmap in (False, True):
            with pytest.raises(DataError, match=r"x\.npy"):
                data.npy(tmp_path / "x.npy", mmap=mmap)
    save_file({"x": torch.zeros(100)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    for content in (whole[:200], whole[:4], b"", b"\xff" * 1000):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.safetensors"):
            data.safetensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "read", [data.npz, data.npy, data.safetensors, data.csv, data.text, data.tokens, data.idx]
)
def test_readers_suggest_the_nearest_name_for_a_missing_file(tmp_path, read):
    (tmp_path / "pets.csv").write_text("a\n1\n")
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*pets\.csv"):
        read(tmp_path / "pet.csv")
    with pytest.raises(FileNotFoundError, match="does not exist either"):
        read(tmp_path / "nowhere" / "pets.csv")
    with pytest.raises(DataError, match="got a directory"):
        read(tmp_path)


# idx.

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx_bytes(array, code):
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return head + array.astype(TYPES[code]).tobytes()


@given(
    code=st.sampled_from(sorted(TYPES)),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    zipped=st.booleans(),
)
def test_idx_reads_every_dtype_and_shape(tmp_path_factory, code, shape, zipped):
    path = tmp_path_factory.mktemp("idx") / "x"
    array = np.arange(np.prod(shape)).reshape(shape) % 100
    content = idx_bytes(array, code)
    path.write_bytes(gzip.compress(content) if zipped else content)
    found = data.idx(path)
    assert tuple(found.shape) == tuple(shape)
    assert found.tolist() == array.astype(TYPES[code]).tolist()


IDX = idx_bytes(np.zeros((3, 2, 2)), 0x08)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "expected an idx file, .* got 3c 68 74 6d"),
        (b"", "got an empty file"),
        (b"\0\0\x07\x01" + bytes(8), "expected an idx file"),
        (IDX[:9], "expected 12 bytes of sizes in the header, got 5"),
        (IDX[:-1], r"expected 12 bytes of numbers for the shape \(3, 2, 2\) in the header, got 11"),
        (IDX + b"\0", "got more"),
        (b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3, "got 0"),
        (b"\0\0\x08\x01" + b"\xff" * 4, "expected sizes >= 0"),
        (gzip.compress(IDX, mtime=0)[:-9], "the gzip compression is damaged"),
        (gzip.compress(IDX, mtime=0)[:-8] + bytes(8), "the gzip compression is damaged"),
        (gzip.compress(b"<html>", mtime=0), "expected an idx file"),
    ],
)
def test_idx_refuses_damaged_files_with_their_path(tmp_path, content, message):
    (tmp_path / "it").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        data.idx(tmp_path / "it")
    assert str(tmp_path / "it") in str(caught.value)


def write_mnist(folder, labels=5):
    folder.mkdir()
    images = np.arange(5 * 28 * 28).reshape(5, 28, 28) % 256
    for part in ("train", "t10k"):
        content = idx_bytes(images, 0x08)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
        content = idx_bytes(np.arange(labels), 0x08)
        (folder / f"{part}-labels.idx1-ubyte").write_bytes(content)


def test_mnist_reads_images_and_labels(tmp_path):
    write_mnist(tmp_path / "mnist")
    train, test = data.mnist(tmp_path / "mnist")
    assert train["image"].shape == (5, 1, 28, 28)
    assert train["image"].max() == 1.0
    assert test["label"].tolist() == [0, 1, 2, 3, 4]


def test_mnist_refuses_incomplete_or_inconsistent_directories(tmp_path):
    with pytest.raises(FileNotFoundError, match="directory not found"):
        data.mnist(tmp_path / "mnist")
    write_mnist(tmp_path / "mnist", labels=4)
    with pytest.raises(DataError, match="expected 5 labels, .* got 4"):
        data.mnist(tmp_path / "mnist")
    labels = tmp_path / "mnist" / "train-labels.idx1-ubyte"
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="file not found: train-labels-idx1-ubyte"):
        data.mnist(tmp_path / "mnist")
    labels.write_bytes(IDX)
    with pytest.raises(DataError, match="expected an array of 1 axes, got 3 axes"):
        data.mnist(tmp_path / "mnist")


# Images.


def write_images(folder, size=(6, 4)):
    from PIL import Image

    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            colour = (label * 255, i, 0)
            Image.new("RGB", size, colour).save(folder / name / f"{i}.png")


def test_images_reads_a_directory_of_classes(tmp_path):
    write_images(tmp_path / "pets")
    pets = data.images(tmp_path / "pets")
    assert (pets.classes, len(pets)) == (["cat", "dog"], 6)
    batch = next(iter(data.Loader(pets, 6, shuffle=False, workers=1)))
    assert batch["image"].shape == (6, 3, 4, 6)
    assert batch["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    grey = data.images(tmp_path / "pets", size=(2, 3), mode="L")
    assert grey[5]["image"].shape == (1, 2, 3)


def test_images_refuses_damaged_files_and_wrong_directories(tmp_path):
    from PIL import Image

    folder = tmp_path / "pets"
    with pytest.raises(FileNotFoundError, match="directory not found"):
        data.images(folder)
    folder.mkdir()
    with pytest.raises(DataError, match="with the name of its class"):
        data.images(folder)
    write_images(folder)
    Image.new("RGB", (3, 3)).save(folder / "cat" / "2.png")
    with pytest.raises(
        DataError, match=r"2\.png: expected 4 x 6 pixels, as in .*0\.png, got 3 x 3.*size="
    ):
        data.images(folder)[2]
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "cat" / "2.png")
    whole = (folder / "cat" / "2.png").read_bytes()
    (folder / "cat" / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2\.png is damaged"):
        data.images(folder)[2]
    (folder / "cat" / "2.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"2\.png: expected an image"):
        data.images(folder)[2]


def test_digits_returns_1797_images_with_labels():
    digits = data.digits()
    assert digits["image"].shape == (1797, 1, 8, 8)
    assert digits["image"].aminmax() == (0.0, 1.0)
    assert torch.bincount(digits["label"]).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]


READERS = {
    "sklearn.datasets": lambda folder: data.digits(),
    "pyarrow": lambda folder: table(folder, "a\n1\n"),
    "PIL.Image": lambda folder: data.images(folder / "pets")[0],
}


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("sklearn.datasets", r"`pip install 'ftrain\[examples\]'`, or `pip install scikit-learn`"),
        ("pyarrow", r"`pip install 'ftrain\[tables\]'`, or `pip install pyarrow`"),
        ("PIL.Image", r"`pip install 'ftrain\[images\]'`, or `pip install pillow`"),
    ],
)
def test_readers_name_the_install_command_of_a_missing_package(
    tmp_path, monkeypatch, module, remedy
):
    write_images(tmp_path / "pets")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"which is not installed. Run {remedy}"):
        READERS[module](tmp_path)
