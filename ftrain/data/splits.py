"""Data sets from data sets: a part held out, several put together.

Read next: `loader.py`, which takes what these return.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset

from ftrain.core import tree
from ftrain.data._fetch import Arrays, as_dataset
from ftrain.data.samplers import Shuffled

__all__ = ["concat", "split"]


def split(dataset: Any, held_out: int | float, *, seed: int = 0) -> tuple[Any, Any]:
    """The dataset in two parts, chosen at random: `(rest, held out)`.

    Args:
        dataset: what a `Loader` takes.
        held_out: how many samples to hold out, or which share of them (a float).
        seed: which samples; keep it fixed, whatever the seed of the run.

    Returns:
        Two of the same kind: trees of tensors, or map-style datasets.

    Raises:
        ValueError: one of the parts would be empty.

    >>> rest, held_out = split({"x": torch.arange(10)}, 0.3)
    >>> len(rest["x"]), len(held_out["x"])
    (7, 3)
    """
    source = as_dataset(dataset)
    n = len(source)
    count = round(held_out * n) if isinstance(held_out, float) else held_out
    if not 0 < count < n:
        raise ValueError(f"held_out={held_out!r} of {n} samples leaves one of the two parts empty")
    order = Shuffled(n).at(np.arange(n, dtype=np.int64), seed=seed, epoch=0)
    parts = np.sort(order[count:]), np.sort(order[:count])
    if isinstance(source, Arrays):
        return source.gather(torch.from_numpy(parts[0])), source.gather(torch.from_numpy(parts[1]))
    return Subset(source, parts[0].tolist()), Subset(source, parts[1].tolist())


def concat(*datasets: Any) -> Any:
    """Datasets one after the other, as `Mixed` counts them.

    Args:
        datasets: trees of tensors of one structure, or map-style datasets.

    Raises:
        ValueError: there is none, or the trees differ in structure.

    >>> both = concat({"x": torch.zeros(2)}, {"x": torch.ones(1)})
    >>> both["x"]
    tensor([0., 0., 1.])
    """
    if not datasets:
        raise ValueError("nothing to put together: concat(first, second, ...)")
    sources = [as_dataset(dataset) for dataset in datasets]
    if all(isinstance(source, Arrays) for source in sources):
        whole = [source.gather(torch.arange(len(source))) for source in sources]
        return tree.map(lambda *leaves: torch.cat(leaves), *whole)
    return ConcatDataset(sources)
