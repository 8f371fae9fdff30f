"""Construction of batches from sample positions, in the main process or in worker processes.

A batch is a pure function of its request. Random draws use keys derived from (seed, epoch, position),
and never a generator that workers share.

Read next: `loader.py`, which makes the requests.
"""

from __future__ import annotations

import collections
import pickle
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, get_worker_info

from ftrain.core import random, tree
from ftrain.core.padded import Padded
from ftrain.data._collate import collate_samples
from ftrain.data._generators import one_thread, preserved_generators, seed_generators
from ftrain.data._hash import words
from ftrain.data._own_generators import own_generators, seed_own_generators

Augment = Callable[[Any, Tensor], Any]
Collate = Callable[[list[Any]], Any]


@runtime_checkable
class Gather(Protocol):
    """Protocol of a dataset that returns a whole batch at once, by `gather(indices)`."""

    def __len__(self) -> int: ...

    def gather(self, indices: Tensor) -> Any:
        """Return the samples with these indices, int64 `(b,)`, as one batch, a pytree."""


class Request(NamedTuple):
    """Request for the rows of one batch that belong to one rank (process).

    Attributes:
        seed: the seed of the run's data.
        epoch: the epoch of these samples.
        positions: `(b,)`; the positions of the rows in the epoch.
        indices: `(b,)`; the indices of the samples in the dataset.
        weight: `(b,)`, 0 for padding rows; `None` without weights.
    """

    seed: int
    epoch: int
    positions: NDArray[np.int64]  # not a tensor: shared memory would make the transfer slower
    indices: NDArray[np.int64]
    weight: NDArray[np.float32] | None


class Arrays:
    """Dataset from a pytree of tensors or arrays whose first axis counts samples."""

    def __init__(self, arrays: Any) -> None:
        found, self._structure = tree.flatten(arrays)
        paths = tree.paths(arrays)
        self._leaves = [_tensor(leaf, path) for leaf, path in zip(found, paths, strict=True)]
        if not self._leaves:
            raise ValueError(
                "dataset: expected at least one tensor, got none. Pass a tensor, or a dict of tensors."
            )
        first = self._leaves[0].shape[0]
        for leaf, path in zip(self._leaves, paths, strict=True):
            if leaf.shape[0] != first:
                raise ValueError(
                    f"dataset{path}: expected {first} rows, as in dataset{paths[0]}, got "
                    f"{leaf.shape[0]}. Give all tensors one row per sample."
                )
        self._length = first

    def __len__(self) -> int:
        return self._length

    def gather(self, indices: Tensor) -> Any:
        """Return the samples with these indices as one batch, a pytree of tensors."""
        rows = [_rows(leaf, indices.to(leaf.device)) for leaf in self._leaves]
        with tree.withheld("a batch of a dataset"):
            return tree.unflatten(self._structure, rows)


class Fetch:
    """Map-style dataset for `DataLoader` workers, indexed by a `Request`; an item is a batch."""

    def __init__(self, dataset: Any, augment: Augment | None, collate: Collate | None) -> None:
        self.dataset, self.augment = dataset, augment
        self.collate = collate or collate_samples
        self.at_once = isinstance(dataset, Gather)
        # Generators are seeded only if draws are possible, because seeding takes 7 µs per sample:
        # reading from a list draws nothing.
        self.may_draw = augment is not None or type(dataset) is not list
        self._generators = own_generators([dataset, augment]) if self.may_draw else []
        self._travels = False

    def __getitem__(self, request: Request) -> Any:
        try:
            batch = self._batch(request)
            if not self._travels and get_worker_info() is not None:
                _check_travels(batch)
                self._travels = True
            return batch
        except StopIteration as error:  # in a worker, this would end the epoch without an error
            raise RuntimeError(
                "dataset: expected a sample at every index below len(dataset), got StopIteration. "
                "Return the sample from __getitem__, or a smaller number from __len__."
            ) from error
        except Exception as error:
            if get_worker_info() is None or _why_not_pickled(type(error)) is None:
                raise
            raise RuntimeError(f"{type(error).__qualname__}: {error}") from error

    def _batch(self, request: Request) -> Any:
        if self.at_once:
            batch = self.dataset.gather(torch.from_numpy(request.indices))
            if self.augment is not None:
                with one_thread():
                    batch = self._augmented(batch, request)
        else:
            with one_thread(), preserved_generators() if self.may_draw else nullcontext():
                batch = self._collated(self._samples(request), request)
        return (
            batch if request.weight is None else weighted(batch, torch.from_numpy(request.weight))
        )

    def _collated(self, samples: list[Any], request: Request) -> Any:
        try:
            return self.collate(samples)
        except Exception as error:
            some = ", ".join(map(str, request.indices[:8])) + (", ..." if len(samples) > 8 else "")
            error.add_note(
                f"while collating samples {some} of the dataset. The default collate needs samples of "
                "one shape and with the same keys; for others write Loader(..., collate=...)."
            )
            raise

    def _augmented(self, batch: Any, request: Request) -> Any:
        keys = sample_keys(request.seed, request.epoch, request.positions)
        device = next(
            (leaf.device for leaf in tree.leaves(batch) if isinstance(leaf, Tensor)), keys.device
        )
        try:
            return torch.vmap(self.augment)(batch, keys.to(device))
        except Exception as error:
            error.add_note(
                "augment(sample, key) is called on all rows of an in-memory batch at once, by "
                "torch.vmap. Write it in torch operations with draws from ftrain.random; if it cannot "
                "be vmapped, pass the data as a list of samples: then it is called for each sample."
            )
            raise

    def _samples(self, request: Request) -> list[Any]:
        indices = request.indices.tolist()
        if not self.may_draw:
            return [self.dataset[index] for index in indices]
        keys = sample_keys(request.seed, request.epoch, request.positions)
        read: list[Any] | None = None
        if hasattr(self.dataset, "__getitems__") and not isinstance(self.dataset, Subset):
            self._seed(keys[0])
            read = list(self.dataset.__getitems__(indices))
            if self.augment is None:
                return read
        samples = []
        for row, (index, key) in enumerate(zip(indices, keys.unbind(0), strict=True)):
            self._seed(key)
            try:
                sample = self.dataset[index] if read is None else read[row]
                samples.append(sample if self.augment is None else self.augment(sample, key))
            except Exception as error:
                error.add_note(f"while fetching sample {index} of the dataset")
                raise
        return samples

    def _seed(self, key: Tensor) -> None:
        seed_generators(key)
        seed_own_generators(self._generators, key)


def _check_travels(batch: Any) -> None:
    """Raise if a worker's batch cannot be pickled; otherwise the main process would wait forever."""
    for leaf in tree.leaves(batch):
        why: object = None
        if isinstance(leaf, Tensor):
            why = (
                "it is part of an autograd graph; write .detach()"
                if leaf.grad_fn is not None
                else None
            )
        elif not isinstance(leaf, (np.ndarray, str, int, float)):
            why = _why_not_pickled(leaf)
        if why is not None:
            raise TypeError(
                "batch: expected values that a worker process can pickle, got "
                f"{type(leaf).__name__}: {why}. Leave it out in the dataset or in collate, or write "
                "workers=0."
            )


def _why_not_pickled(value: Any) -> Exception | None:
    try:
        pickle.dumps(value)
    except Exception as error:  # `__reduce__` and attributes can raise any exception
        return error
    return None


def as_dataset(dataset: Any) -> Any:
    """Wrap a pytree of arrays into an `Arrays` dataset; return any other dataset unchanged."""
    if isinstance(dataset, TensorDataset):
        return Arrays(dataset.tensors)
    if isinstance(dataset, Mapping) and type(dataset) not in _DICTS:
        dataset = dict(dataset)
    if isinstance(dataset, (Tensor, np.ndarray)) or _is_tree(dataset):
        return Arrays(dataset)
    if isinstance(dataset, Gather):
        return dataset
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return dataset
    if hasattr(dataset, "__iter__"):
        raise TypeError(
            f"dataset: expected __len__ and __getitem__, got {type(dataset).__name__}, which can only "
            "be iterated over. Write data.Stream(dataset, batch_size) instead of data.Loader."
        )
    raise TypeError(
        "dataset: expected a tree of tensors or arrays, or an object with __len__ and __getitem__, got "
        f"{type(dataset).__name__}. Pass a dict of tensors, or a list of samples."
    )


_DICTS = (dict, collections.OrderedDict, collections.defaultdict)


def _is_tree(dataset: Any) -> bool:
    """Return True if the dataset is a pytree of arrays instead of a collection of samples."""
    if isinstance(dataset, Dataset):
        return False
    if isinstance(dataset, Mapping):
        return True
    if isinstance(dataset, tuple):
        return type(dataset) is tuple or hasattr(dataset, "_fields")
    has_items = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return not has_items and not tree.is_leaf(dataset)


def sample_keys(seed: int, epoch: int, positions: Tensor | NDArray[np.int64]) -> Tensor:
    """Return one random key per sample for its augmentation, determined by (seed, epoch, position).

    Args:
        seed: the seed of the cursor.
        epoch: the epoch of the cursor.
        positions: int64 `(n,)`: positions in the epoch.

    Returns:
        int32 `(n, 2)`: `fold_in(key of (seed, epoch), position)`. The keys are independent of those of a
        training state with the same seed.

    Example:
        >>> sample_keys(0, 1, torch.arange(3)).shape
        torch.Size([3, 2])
    """
    epoch_key = torch.from_numpy(words("augment", seed, epoch)[:2].view(np.int32))
    return random.fold_in(epoch_key, torch.as_tensor(positions, device="cpu"))


def weighted(batch: Any, weight: Tensor) -> Any:
    """Add weights to a batch: as the entry "weight" of a mapping, else as `Padded(batch, weight)`."""
    if not isinstance(batch, Mapping) or tree.is_leaf(batch):
        return Padded(batch, weight)
    if "weight" in batch:
        raise ValueError(
            'dataset: expected no entry "weight", which last_batch="pad" adds to each batch, got one. '
            "Rename it."
        )
    return tree.with_item(batch, "weight", weight)


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def _rows(leaf: Tensor, indices: Tensor) -> Tensor:
    signed = _SIGNED.get(leaf.dtype)  # torch cannot index these unsigned dtypes
    if signed is None:
        return leaf.index_select(0, indices)
    return leaf.view(signed).index_select(0, indices).view(leaf.dtype)


def _tensor(leaf: Any, path: str) -> Tensor:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc" and leaf.dtype.char not in "gG":
        odd = any(stride < 0 or stride % leaf.itemsize for stride in leaf.strides)
        if odd or not leaf.dtype.isnative:  # torch supports neither
            leaf = leaf.astype(leaf.dtype.newbyteorder("="), order="C")
        with warnings.catch_warnings():  # torch warns for read-only arrays; rows are only read
            warnings.simplefilter("ignore", UserWarning)
            leaf = torch.from_numpy(leaf)
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"dataset{path}: expected a tensor or a numeric array whose first axis counts samples, got "
            f"{_described(leaf)}. To read sample by sample, pass a list of samples, or an object with "
            "__len__ and __getitem__."
        )
    if leaf.ndim == 0:
        raise ValueError(
            f"dataset{path}: expected a first axis that counts samples, got a 0-d tensor. Leave it out, "
            "or repeat it for each sample."
        )
    return leaf.detach()


def _described(leaf: Any) -> str:
    if isinstance(leaf, np.ndarray):
        return f"an array of {leaf.dtype}"
    if hasattr(leaf, "__getitem__") and hasattr(leaf, "__len__"):
        return (
            f"{type(leaf).__name__} (if these are splits, choose a split, such as dataset['train'])"
        )
    return f"{type(leaf).__name__}"
