"""Datasets of image files, with one folder per class.

Read next: `loader.py`, whose arguments `augment` and `workers` are useful for images.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftrain.core._words import one_line
from ftrain.core.errors import DataError
from ftrain.data._files import PathLike, existing, existing_folder
from ftrain.data.cursor import is_count

__all__ = ["images"]

#: Suffixes of images. Other files are ignored; a file with one of these suffixes that is not an image
#: raises.
_SUFFIXES = {
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpeg", ".jpg"),
    *(".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
}

#: Formats that are tried for any suffix. Others of Pillow are excluded, because for EPS it runs another
#: program.
_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")

#: The EXIF tag for the orientation of a photo, and the operation that undoes each of its values.
_ORIENTATION = 0x0112
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class Images:
    """Dataset of the images in a folder with one subfolder per class; indexing reads an image.

    Attributes:
        classes: the sorted names of the folders, or the argument `classes`; a label is an index into
            them.
        files: `(path, label)` of each sample, sorted by class, then by name.
        size: `(height, width)` of every sample.
        mode: `"RGB"`, `"L"` (grey) or another mode of Pillow.
    """

    def __init__(
        self,
        folder: PathLike,
        size: int | tuple[int, int] | None,
        mode: str,
        classes: Sequence[str] | None,
    ) -> None:
        _check_mode(_pillow(), mode)
        self.mode, self._resize = mode, size is not None
        place = existing_folder(folder)
        found = sorted(entry for entry in place.iterdir() if entry.is_dir() and _is_shown(entry))
        self.classes = [entry.name for entry in found] if classes is None else list(classes)
        _check_names(place, self.classes)
        labels = {name: label for label, name in enumerate(self.classes)}
        self.files = [
            (path, labels.get(entry.name, -1))
            for entry in found
            for path in sorted(entry.rglob("*"))
            if _is_image(path)
        ]
        strange = next((path for path, label in self.files if label < 0), None)
        if strange is not None:
            name = strange.relative_to(place).parts[0]
            raise DataError(
                f"{place / name}: expected a folder named after one of the classes {self.classes!r}, "
                f"got {name!r}. Rename the folder, or move it elsewhere."
            )
        if not self.files:
            raise DataError(
                f"{place}: expected one folder of images per class, got no images. Put each image in a "
                f"folder with the name of its class, such as {place / 'cat' / '1.png'}."
            )
        if size is None:
            image = self._read(0)
            self.size = image.height, image.width
        else:
            self.size = _height_and_width(size)

    @classmethod
    def of_files(
        cls, path: PathLike, size: int | tuple[int, int] | None, mode: str, trained: tuple[int, int]
    ) -> Images:
        """Return the images in a folder, at any depth, or one image; without classes, all labels are -1.

        Args:
            path: the folder or file.
            size: the size to which every image is scaled; `None`: all images must have the size
                `trained`.
            mode: mode of Pillow.
            trained: size of the images that a model was trained on.
        """
        _check_mode(_pillow(), mode)
        place = Path(path)
        if not place.is_dir():
            files = [existing(place)]
        else:
            files = [each for each in sorted(place.rglob("*")) if _is_image(each)]
        if not files:
            raise DataError(f"{place}: expected images, got none. Name a folder with images in it.")
        found = cls.__new__(cls)
        found.mode, found._resize, found.classes = mode, size is not None, []
        found.files = [(each, -1) for each in files]
        found.size = trained if size is None else _height_and_width(size)
        return found

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `{"image": float32 (channels, height, width) from 0 to 1, "label": int}`."""
        path, label = self.files[index]
        height, width = self.size
        image = self._read(index)
        if self._resize:
            image = image.resize((width, height), _pillow().Resampling.BILINEAR)
        if image.size != (width, height):
            raise DataError(
                f"{path}: expected {height} x {width} pixels, as in {self._first()}, got "
                f"{image.height} x {image.width}. Pass size=({height}, {width}) to scale all images; in "
                f"a configuration, data.size: [{height}, {width}]."
            )
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
        return {"image": pixels, "label": label}

    def _first(self) -> str:
        return str(self.files[0][0]) if self.classes else "training"

    def _read(self, index: int) -> Any:
        """Return an image in the mode `self.mode`, upright, in its original size."""
        # Pillow is not an attribute, because workers pickle the dataset.
        path, pillow = self.files[index][0], _pillow()
        formats = [name for name in _FORMATS if name in pillow.OPEN]
        with warnings.catch_warnings():  # Pillow warns of large images and invalid EXIF data
            warnings.simplefilter("ignore")
            return self._decoded(path, pillow, formats)

    def _decoded(self, path: Path, pillow: Any, formats: list[str]) -> Any:
        try:
            opened = pillow.open(path, formats=formats)
        except Exception as error:  # decoders raise errors of any class
            raise DataError(
                f"{path}: expected an image that Pillow can read, got an error: {one_line(error)}. "
                "Convert it, or remove it."
            ) from None
        with opened:
            try:
                return _converted(pillow, _upright(pillow, opened), self.mode)
            except Exception as error:  # Pillow decodes the pixels only here
                raise DataError(
                    f"{path} is damaged: {one_line(error)}. Create or copy the file again."
                ) from None


def images(
    folder: PathLike,
    *,
    size: int | tuple[int, int] | None = None,
    mode: str = "RGB",
    classes: Sequence[str] | None = None,
) -> Images:
    """Return a dataset of the images in `folder/<class>/<name>.png` (.jpg, .webp, ...).

    A photo that the camera stored rotated is turned upright according to its EXIF orientation. Images
    with 16 bits per channel are reduced to 8. Hidden files and folders are ignored.

    Args:
        folder: the folder with a subfolder for each class.
        size: the size `(height, width)` to which every image is scaled, or one number for both; default:
            all images must have the same size.
        mode: `"RGB"` for three channels, `"L"` for one.
        classes: the classes in the order of their labels, such as those that a model was trained on;
            default: the folders' names.

    Returns:
        A dataset with samples `{"image": ..., "label": int}`, where the image is float32 `(channels,
        height, width)` from 0 to 1. Its attribute `classes` has the names of the classes.

    Raises:
        FileNotFoundError: the folder does not exist.
        DataError: the folder has no images, or a class that is not in `classes`; when a sample is read,
            its file is damaged.
        ImportError: Pillow is not installed.
        ValueError: the size or mode is invalid.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> from PIL import Image
        >>> (folder / "pets" / "cat").mkdir(parents=True)
        >>> Image.new("RGB", (6, 4)).save(folder / "pets" / "cat" / "1.png")
        >>> pets = images(folder / "pets")
        >>> pets.classes, pets[0]["image"].shape, pets[0]["label"]
        (['cat'], torch.Size([3, 4, 6]), 0)
    """
    return Images(folder, size, mode, classes)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and _is_shown(path) and path.is_file()


def _is_shown(path: Path) -> bool:
    """Return False for hidden files, such as `.ipynb_checkpoints` and the `._*` files of macOS."""
    return not path.name.startswith(".")


def _check_names(place: Path, names: list[str]) -> None:
    """Raise `DataError` for a class name that is not UTF-8, which the files of a run cannot store."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{place}: expected folders with names in UTF-8, got {name!a}. Rename the folder."
            ) from None


def _height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    found = (size, size) if isinstance(size, int) else tuple(size)
    if len(found) != 2 or not all(is_count(each, 1) for each in found):
        raise ValueError(
            f"size: expected (height, width) in pixels, or one number for both, got {size!r}. Write "
            "size=64."
        )
    return found


def _check_mode(pillow: Any, mode: str) -> None:
    try:
        pillow.new("RGB", (1, 1)).convert(mode)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"mode: expected a mode of Pillow, got {mode!r}. Write 'RGB', or 'L' for grey images."
        ) from None


def _upright(pillow: Any, image: Any) -> Any:
    """Turn the image according to its EXIF orientation; ignore damaged EXIF data, as viewers do."""
    image.load()  # some decoders turn the image here, and remove the tag
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # damaged EXIF data raise errors of any class
        turn = None
    return image if turn is None else image.transpose(pillow.Transpose[turn])


def _converted(pillow: Any, image: Any, mode: str) -> Any:
    """Convert the image to another mode; scale 16 bits to 8, because Pillow would clip at 255."""
    if image.mode.startswith("I;16"):
        image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F") and mode != image.mode:
        raise ValueError(f"expected 8 or 16 bits a channel, got the mode {image.mode!r} of 32 bits")
    return image.convert(mode)


def _pillow() -> Any:
    try:
        found = importlib.import_module("PIL.Image")
    except ImportError:
        raise ImportError(
            "data.images reads files with Pillow, which is not installed. Run "
            "`pip install 'ftrain[images]'`, or `pip install pillow`."
        ) from None
    found.init()  # registers all formats of Pillow
    return found
