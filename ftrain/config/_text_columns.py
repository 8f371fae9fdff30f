"""Removal of text columns from a dataset, for runs with a compiled step.

A text is a constant of a compiled program, so that a column of texts would compile one program per
batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ftrain import data
from ftrain.data._fetch import Gather
from ftrain.data._generators import preserved_generators
from ftrain.loop import LoopWarning

__all__ = ["without_texts"]


def without_texts(dataset: Any) -> Any:
    """Return a dataset with the text entries removed from its samples; warn if there are any.

    The first sample decides which entries are texts. Arrays, whole batches and samples that are not
    mappings stay unchanged.
    """
    indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not indexed or isinstance(dataset, (Mapping, Gather)) or not len(dataset):
        return dataset
    try:
        with preserved_generators():  # reading a sample may draw random numbers
            sample = dataset[0]
    except Exception:  # reading the first batch will raise this error with its location
        return dataset
    if not isinstance(sample, Mapping):
        return dataset
    texts = [name for name, value in sample.items() if isinstance(value, (str, bytes))]
    if not texts:
        return dataset
    warnings.warn(
        f"samples of the data have texts, which a compiled step cannot read: batches leave out "
        f"{', '.join(map(repr, texts))}. Turn them into numbers in the data function, or write "
        "compile=false to keep them.",
        LoopWarning,
        stacklevel=2,
    )
    return data.select(dataset, [name for name in sample if name not in texts])
