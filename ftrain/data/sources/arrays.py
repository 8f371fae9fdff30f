"""Data functions for arrays: the digits data set, array files, and folders of images.

Read next: `ftrain/data/arrays.py` and `images.py`, which read them.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator
from typing import Any, Literal

import torch

from ftrain import data
from ftrain.core.errors import DataError
from ftrain.data.images import Images
from ftrain.data.sources._data import Data, Fitted, Inputs, Share, parted, sha256

__all__ = ["arrays", "arrays_inputs", "digits", "images", "images_inputs"]

#: Names of an array of targets, as in `ftrain.tasks`.
_LABELS = ("labels", "label", "targets", "target", "y")
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def digits(held_out: Share = 360) -> Data:
    """Return scans of handwritten digits: `x` float32 `(n, 1, 8, 8)`, `y` int64."""
    found = data.digits()
    samples = {"x": found["image"], "y": found["label"]}
    train, rest = parted(samples, held_out, "the digits")
    return Data(train, rest, {"classes": 10, "features": 64})


def arrays(path: pathlib.Path, held_out: Share | pathlib.Path = 0.2, fitted: Fitted = None) -> Data:
    """Read the arrays in an `.npz` or `.safetensors` file, with samples along the first axis.

    Args:
        path: the file.
        held_out: the number or share of samples to evaluate on, or another file; 0: none.
        fitted: names and shapes of the arrays that a run was trained on.

    Returns:
        The data with the facts `features`, how many numbers a sample of the inputs has (the array `x`,
        or the only array besides the targets), and `classes`, one more than the largest integer target.
    """
    kinds = dict(fitted["arrays"]) if fitted else None
    train = _arrays(path, kinds)
    refitted, facts = _kinds(train), _facts(train)
    if isinstance(held_out, pathlib.Path):
        rest = train if held_out == path else _arrays(held_out, kinds or refitted)
    else:
        train, rest = parted(train, held_out, path)
    contents = sha256(*(train[name] for name in refitted))
    samples = max(map(len, train.values()))
    return Data(
        train, rest, facts, fitted={"samples": samples, "sha256": contents, "arrays": refitted}
    )


def images(
    path: pathlib.Path,
    held_out: Share | pathlib.Path = 0.2,
    size: int | tuple[int, int] | None = None,
    mode: Literal["RGB", "L"] = "RGB",
    fitted: Fitted = None,
) -> Data:
    """Read images from a folder with one subfolder per class: `x` float32 from 0 to 1, `y` int64.

    Args:
        path: the folder.
        held_out: the number or share of images to evaluate on, or another such folder; 0: none.
        size: the height and width in pixels to which every image is scaled, `64` or `[48, 64]`; null:
            all images must have the same size.
        mode: `RGB` for three channels, `L` for one channel of grey.
        fitted: names of the classes that a run fitted, and the size of its images.

    Returns:
        The data with the facts `classes` (the number of classes), `names` (their names), `channels`,
        `height`, `width` and `features` (how many numbers an image has).
    """
    known = fitted["classes"] if fitted else None
    whole = _Images(data.images(path, size=size, mode=mode, classes=known))
    kind = list(fitted["size"]) if fitted else list(whole.size)
    _check_size(path, whole.size, kind)
    if isinstance(held_out, pathlib.Path):
        rest = _Images(data.images(held_out, size=size, mode=mode, classes=whole.classes))
        _check_size(held_out, rest.size, kind)
        parts = whole, rest
    else:
        parts = parted(whole, held_out, path)
    refitted = {
        "images": len(parts[0]),
        "sha256": sha256(
            *(f"{file.relative_to(path)} {file.stat().st_size}\n" for file, _ in whole.files)
        ),
        "classes": whole.classes,
        "size": list(whole.size),
    }
    (height, width), channels = whole.size, len(whole[0]["x"])
    facts = {
        "classes": len(whole.classes),
        "names": whole.classes,
        "channels": channels,
        "height": height,
        "width": width,
        "features": channels * height * width,
    }
    return Data(*parts, facts, fitted=refitted)


def arrays_inputs(
    path: pathlib.Path, held_out: Share | pathlib.Path = 0.2, fitted: Fitted = None
) -> Inputs:
    """Read new arrays with the names and dtypes of a run's training data; targets may be missing.

    The arguments are those of `arrays`; `fitted` must be the preprocessing of a run, and `held_out` is
    not used.
    """
    if not fitted:
        raise ValueError(
            "arrays_inputs: expected as `fitted` the names and dtypes of arrays that the run stored in "
            "data.json, got none. Train the run again, which stores them."
        )
    kinds = dict(fitted["arrays"])
    label = next((name for name in _LABELS if name in kinds), None)
    there = _read(path)
    inputs = {name: kind for name, kind in kinds.items() if name != label or name in there}
    found = _checked(path, there, inputs)

    def batches(size: int) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, max(map(len, found.values())), size):
            yield {name: array[start : start + size] for name, array in found.items()}

    is_class = label is not None and kinds[label].startswith(("int", "uint"))
    return Inputs(batches, {"name": label or "prediction", "numbers": not is_class})


def images_inputs(
    path: pathlib.Path,
    held_out: Share | pathlib.Path = 0.2,
    size: int | tuple[int, int] | None = None,
    mode: Literal["RGB", "L"] = "RGB",
    fitted: Fitted = None,
) -> Inputs:
    """Return the images in a folder, at any depth, or one image, as `images` reads them.

    The arguments are those of `images`; `fitted` must be the preprocessing of a run, and `held_out` is
    not used.
    """
    if not fitted:
        raise ValueError(
            "images_inputs: expected as `fitted` the classes and image size that the run stored in "
            "data.json, got none. Train the run again, which stores them."
        )
    found = Images.of_files(path, size, mode, (fitted["size"][0], fitted["size"][1]))

    def batches(size: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(found), size):
            places = range(start, min(start + size, len(found)))
            yield torch.stack([found[place]["image"] for place in places])

    files = [str(file) for file, _ in found.files]
    return Inputs(batches, {"name": "class", "classes": fitted["classes"]}, {"file": files})


class _Images:
    """Dataset of images whose entries have the names that losses read by default."""

    def __init__(self, found: Any) -> None:
        self._found, self.files = found, found.files
        self.classes, self.size = found.classes, found.size

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._found[index]
        return {"x": sample["image"], "y": sample["label"]}


def _facts(arrays: dict[str, torch.Tensor]) -> dict[str, int]:
    """Return the numbers of features and of classes, if they can be determined from the arrays."""
    label = next((name for name in _LABELS if name in arrays), None)
    inputs = [name for name in arrays if name != label]
    facts = {}
    if "x" in inputs or len(inputs) == 1:
        facts["features"] = math.prod(arrays["x" if "x" in inputs else inputs[0]].shape[1:])
    if label is not None:
        numbers = arrays[label]
        if numbers.ndim == 1 and numbers.numel() and numbers.dtype in _INTEGERS:
            low, high = numbers.aminmax()
            facts |= {"classes": int(high) + 1} if int(low) >= 0 else {}
    return facts


def _arrays(path: pathlib.Path, kinds: dict[str, str] | None) -> dict[str, torch.Tensor]:
    """Read the arrays in a file; raise if names, dtypes or sample shapes differ from `kinds`."""
    found = _read(path)
    return found if kinds is None else _checked(path, found, kinds)


def _read(path: pathlib.Path) -> dict[str, torch.Tensor]:
    read = {".npz": data.npz, ".safetensors": data.safetensors}.get(path.suffix)
    if read is None:
        raise ValueError(
            f"expected a file name that ends in .npz or .safetensors, got {path}. Convert it."
        )
    found = read(path)
    number = next((name for name, array in found.items() if not array.ndim), None)
    if number is not None or not found:
        got = "none" if number is None else f"the single number {number!r}"
        raise DataError(
            f"{path}: expected arrays with samples along the first axis, got {got}. Leave it out of the "
            "file."
        )
    return found


def _checked(
    path: pathlib.Path, found: dict[str, torch.Tensor], kinds: dict[str, str]
) -> dict[str, torch.Tensor]:
    there = _kinds(found)
    for name, kind in kinds.items():
        if there.get(name) != kind:
            got = there.get(name, "none")
            raise DataError(
                f"{path}: expected an array {name!r} of dtype and sample shape {kind}, got {got}. "
                "Write the file in the format of the training data."
            )
    return {name: found[name] for name in kinds}


def _kinds(found: dict[str, torch.Tensor]) -> dict[str, str]:
    """Return `{name: dtype and sample shape}` as texts, such as `float32 (3,)`."""
    return {
        name: f"{str(array.dtype).removeprefix('torch.')} {tuple(array.shape[1:])}"
        for name, array in sorted(found.items())
    }


def _check_size(path: pathlib.Path, found: tuple[int, int], wanted: list[int]) -> None:
    if list(found) != wanted:
        there, run = (f"{height} x {width}" for height, width in (found, wanted))
        raise DataError(
            f"{path}: expected images of {run} pixels, as in training, got {there}. Scale the "
            f"images to {run} pixels, or set data.size to {wanted}."
        )
