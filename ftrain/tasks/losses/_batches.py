"""Access of the losses to the entries of a batch, by key or by position in a tuple."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core.metrics import Mean
from ftrain.core.padded import Padded, unpadded
from ftrain.tasks._numpy_dtypes import as_classes
from ftrain.tasks._weighted import over
from ftrain.tasks.adapters import (
    OF_THE_LOSS,
    Prediction,
    call_model,
    entry_at,
    find_labels,
    named_entries,
    named_entry,
    output_and_labels,
)

__all__ = [
    "Loss",
    "as_weights",
    "entry",
    "inputs_and_labels",
    "of_batch",
    "prediction",
    "prediction_of_classes",
    "row_weights",
    "without_padding",
]

Loss = tuple[Mean, dict[str, Any]]


def prediction(
    model: Callable[..., Any], batch: Any, input: str | int | None, target: str | int | None
) -> Prediction:
    """Call the model; return output and labels.

    If the batch is a tuple, entries are selected by index, and names are ignored, because losses have
    default names.
    """
    return output_and_labels(
        model, batch, input=of_batch(batch, input), target=of_batch(batch, target)
    )


def prediction_of_classes(
    model: Callable[..., Any], batch: Any, input: str | int | None, target: str | int | None
) -> Prediction:
    """Call the model; return output and labels, which are int64 unless they are soft labels."""
    found = prediction(model, batch, input, target)
    return found._replace(labels=as_classes(found.labels))


def of_batch(batch: Any, name: str | int | None) -> str | int | None:
    """Return an entry's `name`; `None` if it is a string and the batch has no names, as a tuple."""
    has_names = named_entries(unpadded(batch)) is not None
    return name if has_names or not isinstance(name, str) else None


def inputs_and_labels(
    batch: Any, input: str | int | None, target: str | int | None
) -> tuple[Tensor, Tensor]:
    """Return the input and the labels of a batch; raise if it has several inputs."""
    batch = unpadded(batch)
    named = named_entries(batch)
    if named is None:
        input, target = of_batch(batch, input), of_batch(batch, target)
        inputs: Tensor = call_model(_only, batch, input=input, target=target)
        return inputs, as_classes(find_labels(batch, target))
    labels = find_labels(batch, target)
    if input is None:
        others = [name for name, x in named.items() if x is not labels and name not in OF_THE_LOSS]
        if len(others) != 1:
            raise ValueError(
                f"batch: expected one entry besides the labels, which mixup and cutmix mix, got "
                f"{', '.join(map(repr, others)) or 'none'}. Name the entry with the argument `input`, "
                "or return no other entries from the data function."
            )
        (input,) = others
    return entry(batch, input, "input"), as_classes(labels)


def entry(batch: Any, name: str | int, option: str | None = None) -> Tensor:
    """Return a batch entry by name or index; errors suggest the loss argument `option`."""
    batch = unpadded(batch)
    named = named_entries(batch)
    if named is None and isinstance(name, int):
        there: Tensor = entry_at(batch, name, option or "input")
        return there
    if named is None:
        raise TypeError(
            f"batch: expected a dict with an entry {name!r}, got {type(batch).__name__}. Return "
            "dicts from the data function, or write your own loss: file.py:loss_fn."
        )
    found: Tensor = named_entry(named, name, "batch", option)
    return found


def row_weights(batch: Any) -> Tensor | None:
    """Return the row weights `(n,)` of a batch, `Padded` or with an entry `weight`; else `None`."""
    if isinstance(batch, Padded):
        return batch.weight
    named = named_entries(batch)
    return None if named is None else named.get("weight")


def without_padding(labels: Tensor, weights: Tensor | None, ignore_index: int = -100) -> Tensor:
    """Return the labels, but `ignore_index` in rows of weight 0, so that metrics skip these rows."""
    if weights is None:
        return labels
    return labels.masked_fill(over(weights == 0, labels), ignore_index)


def as_weights(values: Sequence[float] | None, like: Tensor) -> Tensor | None:
    """Convert a list of numbers to a tensor with the dtype and device of `like`."""
    return None if values is None else torch.tensor(values, dtype=like.dtype, device=like.device)


def _only(x: Tensor) -> Tensor:
    return x
