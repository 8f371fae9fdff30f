"""Selection of columns, to drop entries that a loss does not read.

Read next: `loader.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ftrain.core._words import did_you_mean
from ftrain.data._fetch import Gather

__all__ = ["select"]


def select(dataset: Any, columns: Iterable[str]) -> Any:
    """Return a dataset whose samples have only these entries, such as token ids without their text.

    Drop columns of texts that the loss does not read: a text is a constant of a compiled step, so each
    batch with other texts compiles another program.

    Args:
        dataset: a mapping of arrays; or an object with `__len__` and `__getitem__` whose samples are
            mappings, such as a list of dicts or a Hugging Face dataset; or one with `gather`.
        columns: the names of the entries to keep.

    Returns:
        For a mapping, a dict. For an object with `select_columns`, the result of this method. Otherwise
        a dataset that reads each sample and drops its other entries.

    Raises:
        KeyError: a sample has no such entry.
        TypeError: the dataset is unsupported; `columns` is a single string.

    Example:
        >>> rows = [{"text": "good", "input_ids": [1, 2], "label": 1}]
        >>> select(rows, ("input_ids", "label"))[0]
        {'input_ids': [1, 2], 'label': 1}
    """
    if isinstance(columns, str):
        raise TypeError(
            f"columns: expected names of entries, got the text {columns!r}. Write ({columns!r},)."
        )
    names = tuple(columns)
    if isinstance(dataset, Mapping):
        return _kept(dataset, names)
    if callable(getattr(dataset, "select_columns", None)):
        return dataset.select_columns([*names])
    if isinstance(dataset, Gather):
        return _SelectedGather(dataset, names)
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        many = hasattr(dataset, "__getitems__")
        return (_SelectedMany if many else _Selected)(dataset, names)
    raise TypeError(
        "dataset: expected a mapping of arrays, or an object with __len__ and __getitem__, got "
        f"{type(dataset).__name__}. For an iterable, yield samples with these entries only."
    )


class _Selected:
    """Dataset of samples with some of their entries."""

    def __init__(self, dataset: Any, columns: tuple[str, ...]) -> None:
        self.dataset, self.columns = dataset, columns

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _kept(self.dataset[index], self.columns)


class _SelectedMany(_Selected):
    """Dataset of samples with some of their entries, which can read several samples at once."""

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [_kept(each, self.columns) for each in self.dataset.__getitems__(indices)]


class _SelectedGather:
    """Dataset of whole batches with some of their entries."""

    def __init__(self, dataset: Gather, columns: tuple[str, ...]) -> None:
        self.dataset, self.columns = dataset, columns

    def __len__(self) -> int:
        return len(self.dataset)

    def gather(self, indices: Tensor) -> dict[str, Any]:
        return _kept(self.dataset.gather(indices), self.columns)


def _kept(sample: Any, columns: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(sample, Mapping):
        raise TypeError(
            f"dataset: expected samples that are mappings, got {type(sample).__name__}. Entries are "
            "selected by name: return dicts from the dataset, or leave out entries there."
        )
    for name in columns:
        if name not in sample:
            known = [str(each) for each in sample]
            raise KeyError(
                f"columns: expected entries of a sample ({', '.join(known)}), got {name!r}."
                f"{did_you_mean(name, known) or ' Name one of these.'}"
            )
    return {name: sample[name] for name in columns}
