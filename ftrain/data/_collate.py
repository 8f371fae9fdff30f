"""Default collation of samples: torch's, with lists of numbers converted to tensors first.

torch treats a list in a sample as separate entries: `{"x": [0.1, 0.2]}` would give a list of two tensors
`(n,)`. Hugging Face datasets return arrays as such lists.

Read next: `_fetch.py`, which collates the samples of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

__all__ = ["collate_samples"]


def collate_samples(samples: list[Any]) -> Any:
    """Return one batch of samples; a list of numbers inside a sample is treated as an array.

    Nested lists of equal lengths are arrays too. Floats get torch's default dtype, integers int64.

    Example:
        >>> collate_samples([{"x": [0.5, 1.0], "y": 0}, {"x": [1.5, 2.0], "y": 1}])
        {'x': tensor([[0.5000, 1.0000],
                [1.5000, 2.0000]]), 'y': tensor([0, 1])}
    """
    return default_collate([_with_arrays(sample) for sample in samples])


def _with_arrays(value: Any) -> Any:
    """Convert the lists of numbers in a container to tensors; return it unchanged if it has none."""
    if isinstance(value, Mapping):
        changed = {key: new for key, old in value.items() if (new := _entry(old)) is not old}
        if not changed:
            return value
        found = copy.copy(value) if isinstance(value, MutableMapping) else dict(value)
        found.update(changed)
        return found
    if type(value) in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        entries = [_entry(entry) for entry in value]
        if all(new is old for new, old in zip(entries, value, strict=True)):
            return value
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value


def _entry(value: Any) -> Any:
    """Return an entry of a sample; a list of numbers becomes a tensor."""
    if type(value) is list:
        return value if (found := _array(value)) is None else found
    return _with_arrays(value) if isinstance(value, (tuple, Mapping)) else value


def _array(value: list[Any]) -> Tensor | None:
    """Return nested lists of numbers as a tensor; `None` for other values or unequal lengths."""
    first: Any = value
    while type(first) is list and first:
        first = first[0]
    if not isinstance(first, (bool, int, float, np.number, np.bool_)):
        return None
    try:
        found = np.asarray(value)
    except (ValueError, OverflowError):  # lists of different lengths
        return None
    if found.dtype.kind not in "bif":
        return None
    dtype = {"b": torch.bool, "i": torch.int64, "f": torch.get_default_dtype()}[found.dtype.kind]
    return torch.from_numpy(found).to(dtype)
