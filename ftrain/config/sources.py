"""Data that need no code: what `data.name` can be without a file of one's own.

Each returns `Data(train, held_out, facts)`; arguments elsewhere may ask for a fact, `${data.classes}`.

Read next: `ftrain/data/`, which does the reading.
"""

from __future__ import annotations

import csv as python_csv
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ftrain import data

__all__ = ["Data", "arrays", "csv", "digits", "images", "text"]

Share = int | float


class Data(NamedTuple):
    """What a run learns from.

    Attributes:
        train: what `ftrain.data.Loader` takes, or a loader itself.
        held_out: the same, for evaluation; `None`: nothing.
        facts: what `${data.NAME}` stands for in the arguments of model, loss and callbacks.
        sizes: `batch -> (samples, tokens)` for logs and perplexity; `None`: the trainer's.
    """

    train: Any
    held_out: Any = None
    facts: Mapping[str, Any] = {}
    sizes: Callable[[Any], tuple[int, int]] | None = None


def digits(held_out: Share = 360) -> Data:
    """Scans of handwritten digits: `x` float32 `(n, 1, 8, 8)`, `y` int64; `classes`, `features`."""
    found = data.digits()
    train, rest = data.split({"x": found["image"], "y": found["label"]}, held_out)
    return Data(train, rest, {"classes": 10, "features": 64})


def csv(
    path: pathlib.Path,
    target: str,
    held_out: Share = 0.2,
    classes: bool | None = None,
    columns: list[str] | None = None,
    standardize: bool = True,
    missing: float | None = None,
    delimiter: str = ",",
) -> Data:
    """A table: `x` float32 `(n, features)`, `y` `(n,)`.

    Args:
        path: the file; its first line names the columns.
        target: the column to predict.
        held_out: how many rows to evaluate on, or which share of them.
        classes: whether the target is a class (int64) or a number (float32); null: a class if it
            holds words.
        columns: those to predict from; null: all the others. Columns of words become numbers, one for
            each different word, in their order.
        standardize: scale each column by its mean and spread over the training rows.
        missing: the number that stands for an empty cell; null: an empty cell is an error.
        delimiter: what stands between cells.

    Returns:
        With the facts `features`, `classes` (how many; absent for numbers) and `names` of the classes.
    """
    cells = _different(path, delimiter)
    if target not in cells:
        raise ValueError(f"{path} has no column {target!r}; it has {', '.join(map(repr, cells))}")
    categories = {
        name: sorted(found) for name, found in cells.items() if not all(map(_is_number, found))
    }
    if classes and target not in categories:
        categories[target] = sorted(cells[target], key=float)
    if classes is False and target in categories:
        raise ValueError(
            f"the target {target!r} of {path} holds words: it is a class, not a number"
        )
    found = data.csv(
        path,
        target=target,
        columns=columns,
        categories=categories,
        missing=missing,
        delimiter=delimiter,
    )
    train, rest = data.split(found, held_out)
    if standardize:
        mean, spread = train["x"].mean(0), train["x"].std(0, correction=0)
        for part in (train, rest):
            part["x"] = (part["x"] - mean) / torch.where(spread > 0, spread, 1.0)
    facts: dict[str, Any] = {"features": train["x"].shape[1]}
    if target in categories:
        facts |= {"classes": len(categories[target]), "names": categories[target]}
    return Data(train, rest, facts)


def text(path: pathlib.Path | None = None, context: int = 64, held_out: float = 0.1) -> Data:
    """Windows of `context + 1` characters, int64, for `next_token`; `vocabulary`, `context`, `alphabet`.

    Args:
        path: a file in UTF-8; null: the sources of Python's standard library.
        context: characters that the model sees at a time.
        held_out: the share at the end of the text to evaluate on, each character predicted once.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share of the text, between 0 and 1; found {held_out:g}")
    whole = data.standard_library() if path is None else data.text(path)
    name = "the standard library" if path is None else path
    needed = int((context + 1) / min(held_out, 1 - held_out)) + 1
    if len(whole) < needed:
        raise ValueError(
            f"{name} has {len(whole):,} characters, and a context of {context} with held_out {held_out} "
            f"needs {needed:,}: take more text, or a smaller context"
        )
    train, rest = whole.split(held_out)
    facts = {"vocabulary": whole.vocabulary, "context": context, "alphabet": whole.alphabet}
    windows = train.windows(context + 1), rest.windows(context + 1, stride=context)
    return Data(*windows, facts, predicted)


def predicted(windows: torch.Tensor) -> tuple[int, int]:
    """Windows, and tokens that are predicted: all of a window but the first."""
    samples, length = windows.shape
    return samples, samples * (length - 1)


def arrays(path: pathlib.Path, held_out: Share = 0.2) -> Data:
    """The arrays of an `.npz` or `.safetensors` file by their names, samples along the first axis."""
    read = {".npz": data.npz, ".safetensors": data.safetensors}.get(path.suffix)
    if read is None:
        raise ValueError(f"{path} ends in neither .npz nor .safetensors")
    return Data(*data.split(read(path), held_out))


def images(path: pathlib.Path, held_out: Share = 0.2) -> Data:
    """A folder with a folder of images for each class; `classes`, `names`."""
    found = data.images(path)
    return Data(
        *data.split(found, held_out), {"classes": len(found.classes), "names": found.classes}
    )


def _different(path: pathlib.Path, delimiter: str) -> dict[str, set[str]]:
    """By column: the different cells that are not empty. What is wrong in it, `data.csv` says."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = python_csv.reader(file, delimiter=delimiter)
        found: dict[str, set[str]] = {name: set() for name in next(rows, [])}
        for row in rows:
            for name, cell in zip(found, row, strict=False):
                if cell.strip():
                    found[name].add(cell)
    return found


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
