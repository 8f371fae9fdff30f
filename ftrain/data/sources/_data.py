"""Value that a data function (a function named by `data` in a configuration) returns."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ftrain import data
from ftrain.core.errors import DataError

__all__ = ["Data", "Fitted", "Inputs", "Share", "parted", "sha256"]

#: Number of held-out samples, or a share of them; 0: none.
Share = int | float

#: Preprocessing fitted on the training data of a run, as JSON. `None`: a new run, which fits it.
#: Empty: the run stored none, as runs of earlier versions.
Fitted = Mapping[str, Any] | None


class Data(NamedTuple):
    """Training and held-out data of a run, with values such as the number of classes.

    Attributes:
        train: a dataset for `ftrain.data.Loader`, or a loader.
        held_out: the same, for evaluation; `None`: nothing.
        facts: the values of `${data.NAME}` in the arguments of model, loss and callbacks.
        sizes: `batch -> (samples, tokens)` for logs and perplexity; `None`: the trainer's.
        fitted: the preprocessing fitted on these training data, in values that JSON has. A function that
            has an argument `fitted` receives it when its run is evaluated or resumed.
    """

    train: Any
    held_out: Any = None
    facts: Mapping[str, Any] = {}
    sizes: Callable[[Any], tuple[int, int]] | None = None
    fitted: Mapping[str, Any] | None = None


class Inputs(NamedTuple):
    """Samples without targets, for predictions.

    Attributes:
        batches: `size -> batches` of at most `size` samples, each a tensor or a mapping of tensors.
        target: a mapping with `name` and other arguments of `tasks.predictions`; or with `alphabet`, for
            a text; or with `numbers`: True if the targets were numbers, False if they were unnamed
            classes.
        columns: columns of the table of predictions that name the samples, such as their files.
    """

    batches: Callable[[int], Iterator[Any]]
    target: Mapping[str, Any]
    columns: Mapping[str, Sequence[str]] = {}


def parted(dataset: Any, held_out: Share, where: pathlib.Path | str) -> tuple[Any, Any]:
    """Split a dataset into a training part and a held-out part, `None` if `held_out` is 0.

    Raises:
        DataError: one part would be empty; the message begins with `where`.
    """
    if not held_out:
        return dataset, None
    try:
        return data.split(dataset, held_out)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def sha256(*contents: torch.Tensor | str) -> str:
    """Return a hash of the training data, which a resumed run compares to detect changes."""
    found = hashlib.sha256()
    for one in contents:
        if isinstance(one, str):
            found.update(one.encode(errors="surrogateescape"))  # names of files are bytes
        else:
            found.update(one.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
