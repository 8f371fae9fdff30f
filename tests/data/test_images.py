"""Test folders of images: orientation, depths, formats, hidden files, sizes and worker processes."""

from __future__ import annotations

import os
import pathlib
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ftrain import data
from ftrain.core.errors import DataError
from ftrain.data import sources


def folder_of(tmp_path: pathlib.Path, image: Image.Image, name: str, **options: Any) -> Any:
    (tmp_path / "photos" / "a").mkdir(parents=True, exist_ok=True)
    image.save(tmp_path / "photos" / "a" / name, **options)
    return tmp_path / "photos"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_exif_says(
    tmp_path: pathlib.Path, suffix: str, orientation: int
) -> None:
    """The upper left corner of the scene is white; EXIF, 4.6.4.A: where row 0 and column 0 are."""
    upright = np.zeros((32, 48), np.uint8)
    upright[:16, :16] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored)).convert("RGB")
    photos = data.images(folder_of(tmp_path, image, f"1.{suffix}", exif=exif))
    assert photos.size == (32, 48)
    assert np.allclose(photos[0]["image"][0], upright / 255, atol=0.1)


@pytest.mark.filterwarnings("error")
def test_damaged_exif_data_do_not_hide_an_image(tmp_path: pathlib.Path) -> None:
    image = Image.new("RGB", (5, 4), (255, 0, 0))
    photos = data.images(folder_of(tmp_path, image, "1.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert photos[0]["image"].shape == (3, 4, 5)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_of_16_bits_are_scaled_to_8_without_clipping(
    tmp_path: pathlib.Path, suffix: str, mode: str
) -> None:
    """Pillow's own conversion to 8 bits makes all numbers above 255 white."""
    shades = np.linspace(0, 65535, 20).astype(np.uint16).reshape(4, 5)
    photos = data.images(folder_of(tmp_path, Image.fromarray(shades), f"1.{suffix}"), mode=mode)
    assert np.allclose(photos[0]["image"][0], shades / 65535, atol=1 / 255)


def test_images_of_32_bits_per_channel_are_refused(tmp_path: pathlib.Path) -> None:
    image = Image.fromarray(np.ones((4, 5), np.float32))
    with pytest.raises(DataError, match=r"1\.tif .*expected 8 or 16 bits a channel, got .* 'F'"):
        data.images(folder_of(tmp_path, image, "1.tif"))


def test_hidden_files_and_folders_are_left_out(tmp_path: pathlib.Path) -> None:
    folder = folder_of(tmp_path, Image.new("RGB", (5, 4)), "1.png")
    (folder / "a" / "._1.png").write_bytes(b"resource fork")
    (folder / ".ipynb_checkpoints").mkdir()
    photos = data.images(folder)
    assert (photos.classes, len(photos)) == (["a"], 1)


def test_files_of_other_formats_are_refused_whatever_their_suffix(tmp_path: pathlib.Path) -> None:
    """EPS, which Pillow renders by running Ghostscript, and a format that needs a plugin."""
    folder = folder_of(tmp_path, Image.new("RGB", (5, 4)), "1.png", format="EPS")
    with pytest.raises(DataError, match=r"1\.png: expected an image that Pillow can read"):
        data.images(folder)
    (folder / "a" / "1.png").rename(folder / "a" / "1.heic")
    with pytest.raises(DataError, match=r"1\.heic: expected an image .* Convert it, or remove it"):
        data.images(folder)


def test_file_names_that_are_not_utf8_are_accepted_and_such_class_names_refused(
    tmp_path: pathlib.Path,
) -> None:
    folder = folder_of(tmp_path, Image.new("RGB", (5, 4)), "1.png")
    odd = os.fsdecode(b"caf\xe9")
    (folder / "a" / "1.png").rename(folder / "a" / f"{odd}.png")
    assert sources.images(folder, held_out=0).facts["classes"] == 1
    (folder / "a").rename(folder / odd)
    with pytest.raises(DataError, match=r"expected folders with names in UTF-8, got 'caf\\udce9'"):
        sources.images(folder)


def test_one_number_as_size_is_height_and_width(tmp_path: pathlib.Path) -> None:
    folder = folder_of(tmp_path, Image.new("RGB", (50, 40)), "1.png")
    assert data.images(folder, size=7)[0]["image"].shape == (3, 7, 7)
    for size in (0, -1, True, (3,), (3, 0), (2.5, 3)):
        with pytest.raises(ValueError, match="size: expected"):
            data.images(folder, size=size)
    with pytest.raises(ValueError, match="mode: expected a mode of Pillow, got 'rgb'"):
        data.images(folder, mode="rgb")


def test_spawned_workers_read_the_images(tmp_path: pathlib.Path) -> None:
    photos = data.images(folder_of(tmp_path, Image.new("RGB", (5, 4)), "1.png"))
    assert pickle.loads(pickle.dumps(photos))[0]["image"].shape == (3, 4, 5)
