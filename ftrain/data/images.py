"""Datasets of image files, with one folder per class.

Read next: `loader.py`; its arguments `augment` and `workers` are made for this.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ftrain.core.errors import DataError
from ftrain.data._files import PathLike, existing_folder

__all__ = ["images"]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Images:
    """Dataset of the images in a folder with one subfolder per class, read when indexed.

    Attributes:
        classes: the folders' names, sorted, or the `classes` argument; a label is an index into these.
        files: `(path, label)` of each sample, sorted by class, then by name.
        size: `(height, width)` of every sample.
        mode: `"RGB"`, `"L"` (grey) or another mode of Pillow.
    """

    def __init__(
        self,
        folder: PathLike,
        size: tuple[int, int] | None,
        mode: str,
        classes: Sequence[str] | None,
    ) -> None:
        self._pillow = _pillow()
        self.mode, self._resize = mode, size is not None
        place = existing_folder(folder)
        found = sorted(entry for entry in place.iterdir() if entry.is_dir())
        self.classes = [entry.name for entry in found] if classes is None else list(classes)
        labels = {name: label for label, name in enumerate(self.classes)}
        self.files = [
            (path, labels.get(entry.name, -1))
            for entry in found
            for path in sorted(entry.rglob("*"))
            if path.suffix.lower() in _SUFFIXES and path.is_file()
        ]
        strange = next((path for path, label in self.files if label < 0), None)
        if strange is not None:
            name = strange.relative_to(place).parts[0]
            raise DataError(
                f"{place / name}: expected a folder named after one of the classes {self.classes!r}, "
                f"got {name!r}. Rename the folder, or move it elsewhere"
            )
        if not self.files:
            raise DataError(
                f"{place}: expected one folder of images per class, got no images. Put each image in a "
                f"folder with the name of its class, such as {place / 'cat' / '1.png'}"
            )
        if size is None:
            size = tuple(reversed(self._opened(0).size))
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `{"image": float32 (channels, height, width) from 0 to 1, "label": int}`."""
        path, label = self.files[index]
        image = self._opened(index)
        height, width = self.size
        try:
            image = image.convert(self.mode)
        except (OSError, ValueError, SyntaxError) as error:  # where Pillow decodes
            raise DataError(f"{path} is damaged: {error}. Create or copy the file again") from None
        if self._resize:
            image = image.resize((width, height), self._pillow.Resampling.BILINEAR)
        if image.size != (width, height):
            raise DataError(
                f"{path}: expected {height} x {width} pixels, as in {self.files[0][0]}, got "
                f"{image.height} x {image.width}. Pass size=({height}, {width}) to scale all images"
            )
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()
        return {"image": pixels, "label": label}

    def _opened(self, index: int) -> Any:
        path = self.files[index][0]
        try:
            return self._pillow.open(path)
        except (OSError, self._pillow.DecompressionBombError) as error:
            raise DataError(
                f"{path}: expected an image that Pillow can read, got an error: {error}. Convert it, or "
                "remove it"
            ) from None


def images(
    folder: PathLike,
    *,
    size: tuple[int, int] | None = None,
    mode: str = "RGB",
    classes: Sequence[str] | None = None,
) -> Images:
    """Return a dataset of the images in `folder/<class>/<name>.png` (.jpg, .webp, ...).

    Args:
        folder: holds a folder for each class.
        size: `(height, width)` to scale every image to; default: they have one size already.
        mode: `"RGB"` for three channels, `"L"` for one.
        classes: the classes in the order of their labels, such as those that a model was trained on;
            default: the folders' names.

    Returns:
        A dataset whose samples are `{"image": ..., "label": int}`, the image float32 `(channels, height,
        width)` from 0 to 1, and the class names in `.classes`.

    Raises:
        FileNotFoundError: the folder does not exist.
        DataError: it holds no images, or a class that is not among `classes`; and, when a sample is
            read, the file that is damaged.
        ImportError: Pillow is not installed.

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


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError:
        raise ImportError(
            "data.images reads files with Pillow, which is not installed. Run `pip install pillow`."
        ) from None
