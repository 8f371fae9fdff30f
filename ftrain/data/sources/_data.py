"""Return value of a data function, the function that `data` names in a configuration."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ftrain import data
from ftrain.core.errors import DataError

__all__ = ["Data", "Fitted", "Inputs", "Share", "parted", "sha256"]

#: Number of held-out samples (int) or their share of all samples (float); 0: none.
Share = int | float

#: Preprocessing fitted on the training data of a run, as JSON. `None` for a new run, which fits it;
#: empty if the run stored none, as in earlier versions.
Fitted = Mapping[str, Any] | None


class Data(NamedTuple):
    """Training and held-out data of a run, with values such as the number of classes.

    Attributes:
        train: a dataset for `ftrain.data.Loader`, or a loader.
        held_out: the same for evaluation; `None`: no evaluation data.
        facts: values that describe the data, to which arguments of model, loss and callbacks refer by
            `${data.NAME}`.
        sizes: `batch -> (samples, tokens)` for logs and perplexity; `None`: the default of the trainer.
        fitted: the preprocessing fitted on these training data, in values that JSON can represent. A
            data function with an argument `fitted` receives it when its run is evaluated or resumed.
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
        target: a mapping with `name` and the other entries of `target` in `tasks.predictions`; for a
            text, with `alphabet`; otherwise with `numbers`, True if the targets were numbers and False
            if they were classes without names.
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
    """Return a hash of the training data, by which a resumed run detects changes."""
    found = hashlib.sha256()
    for one in contents:
        if isinstance(one, str):
            found.update(one.encode(errors="surrogateescape"))  # names of files may be any bytes
        else:
            found.update(one.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
