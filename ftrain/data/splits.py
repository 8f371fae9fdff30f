"""Functions that split a dataset or concatenate several.

Read next: `loader.py`, which reads the results.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset

from ftrain.core import tree
from ftrain.data._fetch import Arrays, as_dataset
from ftrain.data.samplers import Shuffled

__all__ = ["concat", "split"]


def split(dataset: Any, held_out: int | float, *, seed: int = 0) -> tuple[Any, Any]:
    """Split a dataset at random into two parts: `(remaining samples, held-out samples)`.

    Args:
        dataset: a dataset for a `Loader`.
        held_out: the number of samples to hold out (an int), or a share of them (a float).
        seed: the seed of the choice; keep it fixed when the seed of the run changes.

    Returns:
        Two datasets of the same kind as `dataset`: trees of tensors, or map-style datasets.

    Raises:
        ValueError: one of the parts would be empty.

    Example:
        >>> rest, held_out = split({"x": torch.arange(10)}, 0.3)
        >>> len(rest["x"]), len(held_out["x"])
        (7, 3)
    """
    source = as_dataset(dataset)
    n = len(source)
    if not isinstance(held_out, (int, float)) or isinstance(held_out, bool) or math.isnan(held_out):
        raise ValueError(
            f"held_out: expected a number of samples or a share of them, got {held_out!r}. Write "
            "held_out=0.1."
        )
    count = round(held_out * n) if isinstance(held_out, float) else held_out
    if not 0 < count < n:
        raise ValueError(
            f"held_out={held_out!r} of {n} samples leaves one of the two parts empty. Hold out at least "
            "one sample, and not all."
        )
    order = Shuffled(n).at(np.arange(n, dtype=np.int64), seed=seed, epoch=0)
    parts = np.sort(order[count:]), np.sort(order[:count])
    if isinstance(source, Arrays):
        return source.gather(torch.from_numpy(parts[0])), source.gather(torch.from_numpy(parts[1]))
    return Subset(source, parts[0].tolist()), Subset(source, parts[1].tolist())


def concat(*datasets: Any) -> Any:
    """Concatenate datasets into one, in the order of the arguments.

    The sampler `Mixed` yields indices into the result.

    Args:
        datasets: trees of tensors of one structure, or map-style datasets.

    Raises:
        ValueError: no dataset is given, or they differ in kind, structure, dtypes or shapes.

    Example:
        >>> both = concat({"x": torch.zeros(2)}, {"x": torch.ones(1)})
        >>> both["x"]
        tensor([0., 0., 1.])
    """
    if not datasets:
        raise ValueError(
            "datasets: expected at least one, got none. Write concat(first, second, ...)."
        )
    sources = [as_dataset(dataset) for dataset in datasets]
    arrays = [isinstance(source, Arrays) for source in sources]
    if not any(arrays):
        return ConcatDataset(sources)
    if not all(arrays):
        raise ValueError(
            "datasets: expected only trees of tensors, or only map-style datasets, got both. Turn each "
            "tree of tensors into a list of samples."
        )
    whole = [source.gather(torch.arange(len(source))) for source in sources]
    for path, *leaves in zip(tree.paths(whole[0]), *map(tree.leaves, whole), strict=False):
        kinds = [(leaf.dtype, tuple(leaf.shape[1:])) for leaf in leaves]
        if len(set(kinds)) > 1:
            raise ValueError(
                f"datasets: expected samples of one dtype and shape at {path or 'the root'}, got "
                + ", ".join(f"{dtype} {shape}" for dtype, shape in dict.fromkeys(kinds))
                + ". Convert the samples of one dataset to those of the other."
            )
    return tree.map(lambda *leaves: torch.cat(leaves), *whole)
