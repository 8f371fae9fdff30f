"""Loader of batches that starts at any cursor, and yields each batch with the cursor after it.

    loader = data.Loader(dataset, batch_size=64, seed=0)
    cursor = loader.start()
    for batch, cursor in loader.batches(cursor, epochs=10):
        state, metrics = step(state, batch)
        ...                                     # save cursor.to_json() beside the state

The loader holds no state: it is a value. Starting at batch a million costs the same as starting at
the first one.

Read next: `samplers.py` for the order, `_fetch.py` for how a batch is made.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from ftrain.core.errors import ArgumentError
from ftrain.data._device import transferred
from ftrain.data._fetch import Augment, Collate, Fetch, Gather, Request, as_dataset
from ftrain.data._release_workers import release_workers
from ftrain.data.cursor import Cursor, check_seed, checked, convert_integers, is_count
from ftrain.data.samplers import Sampler, Sequential, Shuffled

__all__ = ["Loader"]

LastBatch = Literal["drop", "keep", "pad"]

#: Number of positions whose sample indices are computed at once, for a microsecond or two per batch.
_AT_ONCE = 8192

#: Largest number of workers; each is a process with memory of its own.
_MOST_WORKERS = 1024

#: Number and length of the ranges of positions whose sample indices identify an order.
_PROBES, _PROBE = 4, 64


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
    """Loader of batches of a dataset, in an order determined by (seed, epoch, position) alone.

    Attributes:
        dataset: a tree of tensors or arrays whose first axis counts samples (read by indexing alone); an
            object with `gather(indices) -> batch`; or a list or any object with `__len__` and
            `__getitem__`, such as a torch or Hugging Face dataset (read sample by sample).
        batch_size: samples in a batch, over all ranks together.
        seed: the seed of order and augmentation: an integer of 64 bits.
        shuffle: True: another order in each epoch; False: the stored order.
        sampler: another order, such as `Weighted(...)`, instead of `shuffle`.
        last_batch: treatment of a last batch that is not full: `"drop"`, `"keep"`, or `"pad"` with rows
            of weight zero, so that every batch has one shape. With `"pad"`, each batch gets float32
            weights `(rows,)`: a mapping as its entry `"weight"`, others in a `Padded(batch, weight)`.
            The padding repeats a sample: a loss leaves it out by its weight, but BatchNorm in training
            takes its statistics over all rows, and a `Trainer` refuses such a model. Default: `"keep"`
            with neither shuffle nor sampler, else `"drop"`.
        augment: `augment(sample, key) -> sample`; `key` is an `ftrain.random` key that (seed, epoch,
            position) decide. On in-memory data it is vmapped over the batch, else called for each
            sample, in the workers.
        collate: `collate(samples) -> batch` for data read sample by sample (refused for other data);
            default: torch's, except that a list of numbers in a sample is an array.
        workers: processes that fetch samples; 0: fetch in this process. Batches do not depend on it.
        prefetch: batches that each worker prepares; if positive, batches are also copied to a CUDA
            device ahead of time.
        device: the device of the batches; `None`: that of the data.
        rank: the rank of this process, which receives its rows of each batch.
        ranks: the number of processes that share each batch; divides `batch_size`.
        start_method: start method of workers: `"fork"`, `"spawn"`, `"forkserver"`; `None`: Python's
            default.

    Raises:
        TypeError: the dataset is unsupported, or can only be iterated over (use `Stream`).
        ValueError: an option is out of range, or `last_batch="drop"` leaves no full batch.

    Example:
        >>> loader = Loader({"x": torch.arange(10)}, batch_size=4, seed=0)
        >>> len(loader)
        2
        >>> [batch["x"].shape for batch in loader]
        [torch.Size([4]), torch.Size([4])]
        >>> for batch, cursor in loader.batches(loader.start(), epochs=2):
        ...     print(cursor)
        Cursor(seed=0, epoch=0, position=4, state=None)
        Cursor(seed=0, epoch=1, position=0, state=None)
        Cursor(seed=0, epoch=1, position=4, state=None)
        Cursor(seed=0, epoch=2, position=0, state=None)
    """

    dataset: Any = dataclasses.field(repr=False)
    batch_size: int
    _: dataclasses.KW_ONLY
    seed: int = 0
    shuffle: bool = True
    sampler: Sampler | None = None
    last_batch: LastBatch | None = None
    augment: Augment | None = None
    collate: Collate | None = None
    workers: int = 0
    prefetch: int = 2
    device: torch.device | str | None = None
    rank: int = 0
    ranks: int = 1
    start_method: Literal["fork", "spawn", "forkserver"] | None = None
    _fetch: Fetch = dataclasses.field(init=False, repr=False)
    _order: Sampler = dataclasses.field(init=False, repr=False)
    _last_batch: LastBatch = dataclasses.field(init=False, repr=False)
    _of: str = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        convert_integers(self, "batch_size", "seed", "workers", "prefetch", "rank", "ranks")
        _check_options(self)
        source = as_dataset(self.dataset)
        if not len(source):
            raise ValueError(
                "dataset: expected at least one sample, got none. Pass data that is not empty."
            )
        if self.collate is not None and isinstance(source, Gather):
            raise ValueError(
                "collate: expected None for a dataset that returns whole batches, got a function. Leave "
                "it out, or pass the dataset as a list of samples."
            )
        ordered = Shuffled if self.shuffle else Sequential
        order = ordered(len(source)) if self.sampler is None else self.sampler
        plain = self.sampler is None and not self.shuffle
        last_batch = self.last_batch or ("keep" if plain else "drop")
        if last_batch == "keep" and self.ranks > 1:
            raise ValueError(
                'last_batch: expected "pad" or "drop" with ranks > 1, got "keep" (the default without '
                "shuffle and sampler), which gives some ranks fewer rows. Write "
                'last_batch="pad" (rows of weight zero) or last_batch="drop".'
            )
        if last_batch == "drop" and len(order) < self.batch_size:
            raise ArgumentError(
                "batch_size",
                f"expected at most {len(order)}, the number of samples, because last_batch is "
                f'"drop" and keeps full batches only, got {self.batch_size}',
                'Write a smaller batch_size, or last_batch="keep" or last_batch="pad".',
            )
        # Derived from the fields, and frozen like them.
        object.__setattr__(self, "_fetch", Fetch(source, self.augment, self.collate))
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_last_batch", last_batch)
        object.__setattr__(self, "_of", f"{len(order)} samples")

    def __len__(self) -> int:
        """Return the number of batches per epoch, which is the same on every rank."""
        return self._remaining(0)

    @property
    def padding(self) -> int:
        """Number of padding rows (of weight zero) in the last batch of an epoch, over all ranks."""
        return -len(self._order) % self.batch_size if self._last_batch == "pad" else 0

    def start(self) -> Cursor:
        """Return the cursor before the first batch of the first epoch."""
        return self._cursor(self.seed)

    def at(self, step: int) -> Cursor:
        """Return the cursor after the first `step` batches of the run."""
        if not is_count(step, 0):
            raise ValueError(
                f"step: expected an integer >= 0, got {step!r}. Write loader.at(0) for the start."
            )
        epoch, batches = divmod(step, len(self))
        return self._cursor(self.seed, epoch, batches * self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the first epoch, without cursors."""
        return (batch for batch, _ in self.batches())

    def batches(
        self, cursor: Cursor | None = None, epochs: int | None = 1
    ) -> Iterator[tuple[Any, Cursor]]:
        """Yield the batches that follow `cursor`, each with the cursor after that batch.

        Args:
            cursor: the position to begin at, and the seed; `None`: the start.
            epochs: the number of epochs, including the remainder of the cursor's epoch, even if no
                batch of this size remains in it; `None`: no limit. Workers are started once for all of
                them.

        Yields:
            `(batch, cursor)`; after the last batch of epoch e the cursor is (seed, e + 1, 0).

        Raises:
            ValueError: the cursor is past the end of an epoch, or was made by a stream, or for data of
                another length or in another order.
        """
        cursor = (
            self.start() if cursor is None else checked(cursor, self._of, self._order_fingerprint)
        )
        if cursor.state is not None:
            raise ValueError(
                "cursor: expected a cursor of a Loader, got one of a data.Stream. Pass loader.start()."
            )
        if cursor.position > len(self._order):
            raise ValueError(
                f"cursor: expected a position of at most {len(self._order)}, the number of samples, got "
                f"{cursor.position}. Pass the data that the cursor was made for."
            )
        if epochs is not None and not is_count(epochs, 0):
            raise ValueError(
                f"epochs: expected an integer >= 0, or None for no limit, got {epochs!r}. Write "
                "epochs=1."
            )
        return self._run(cursor, epochs)

    def _run(self, cursor: Cursor, epochs: int | None) -> Iterator[tuple[Any, Cursor]]:
        planned = self._plan(cursor, epochs)
        fetched = (
            _in_workers(self, planned)
            if self.workers
            else ((self._fetch[request], after) for request, after in planned)
        )
        if self.device is None:
            return fetched
        return transferred(fetched, torch.device(self.device), ahead=min(self.prefetch, 1))

    def _plan(self, cursor: Cursor, epochs: int | None) -> Iterator[tuple[Request, Cursor]]:
        """Yield the request for each batch after `cursor`, with the cursor after that batch."""
        seed, epoch, position = cursor.seed, cursor.epoch, cursor.position
        end = None if epochs is None else epoch + epochs
        while epoch != end:
            left = self._remaining(position)
            while left:
                block = self._block(seed, epoch, position)
                for row in range(len(block.positions)):
                    left -= 1
                    position += self.batch_size
                    after = (
                        self._cursor(seed, epoch, position)
                        if left
                        else self._cursor(seed, epoch + 1)
                    )
                    weight = None if block.weight is None else block.weight[row]
                    yield (
                        Request(seed, epoch, block.positions[row], block.indices[row], weight),
                        after,
                    )
            epoch, position = epoch + 1, 0

    def _cursor(self, seed: int, epoch: int = 0, position: int = 0) -> Cursor:
        return Cursor(seed, epoch, position, of=self._of, sampler=self._order_fingerprint)

    @functools.cached_property
    def _order_fingerprint(self) -> str:
        """Return a text that identifies the order: shuffle or sampler, and a hash of part of an epoch.

        Later epochs are not hashed: a custom order may be a list of as many epochs as the run has.
        """
        n, length = len(self._order), min(len(self._order), _PROBE)
        starts = np.linspace(0, n - length, _PROBES).astype(np.int64)
        positions = starts[:, None] + np.arange(length, dtype=np.int64)
        indices = self._order.at(positions, seed=0, epoch=0)
        self._check_indices(indices, positions)
        found = np.ascontiguousarray(indices, dtype="<i8").tobytes()
        option = f"shuffle={self.shuffle}" if self.sampler is None else type(self.sampler).__name__
        return f"{option} {hashlib.blake2b(found, digest_size=6).hexdigest()}"

    def _remaining(self, position: int) -> int:
        """Return the number of batches from a position to the end of its epoch."""
        whole, rest = divmod(len(self._order) - position, self.batch_size)
        return whole + (rest > 0 and self._last_batch != "drop")

    def _block(self, seed: int, epoch: int, position: int) -> _Block:
        """Return this rank's sample indices for the next full batches, or for the partial last batch."""
        n, rows = len(self._order), self.batch_size // self.ranks
        whole = min((n - position) // self.batch_size, max(1, _AT_ONCE // rows))
        # A batch of `last_batch="keep"` may be larger than the data.
        width = rows if self._last_batch == "pad" else min(rows, n)
        columns = self.rank * rows + np.arange(width, dtype=np.int64)
        starts = position + self.batch_size * np.arange(max(whole, 1), dtype=np.int64)
        positions = starts[:, None] + columns
        weight = None
        if self._last_batch == "pad":
            weight = (positions < n).astype(np.float32)
            positions = np.minimum(positions, n - 1)
        elif not whole:
            positions = positions[:, : n - position]
        indices = self._order.at(positions, seed=seed, epoch=epoch)
        self._check_indices(indices, positions)
        return _Block(positions, indices, weight)

    def _check_indices(self, indices: Any, positions: NDArray[np.int64]) -> None:
        found = (getattr(indices, "dtype", None), getattr(indices, "shape", None))
        if not isinstance(indices, np.ndarray) or found != (np.int64, positions.shape):
            raise TypeError(
                f"sampler: expected {type(self._order).__name__}.at(positions) to return an int64 numpy "
                f"array with the shape of the positions, {positions.shape}, got "
                f"{type(indices).__name__} with dtype and shape {found}. Convert the result."
            )
        low, high, n = indices.min(), indices.max(), len(self._fetch.dataset)
        if low < 0 or high >= n:
            raise IndexError(
                f"sampler: expected indices from 0 to {n - 1}, got {low if low < 0 else high}. Pass the "
                "dataset that the sampler was made for."
            )


class _Block(NamedTuple):
    """Arrays of positions, sample indices and weights, with one row per batch."""

    positions: NDArray[np.int64]
    indices: NDArray[np.int64]
    weight: NDArray[np.float32] | None


def _in_workers(
    loader: Loader, planned: Iterator[tuple[Request, Cursor]]
) -> Iterator[tuple[Any, Cursor]]:
    """Yield the planned batches in order, computed by the worker processes of a `DataLoader`."""
    cursors: collections.deque[Cursor] = collections.deque()

    def requests() -> Iterator[Request]:
        for request, after in planned:
            cursors.append(after)
            yield request

    fetched: DataLoader[Any] = DataLoader(
        loader._fetch,  # type: ignore[arg-type]  # a map-style dataset, with requests as its keys
        sampler=requests(),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=loader.workers,
        prefetch_factor=max(1, loader.prefetch),
        multiprocessing_context=loader.start_method,
        # Without a generator, iter(DataLoader) draws a seed from the global one.
        generator=torch.Generator(),
    )
    try:
        for batch in fetched:
            yield batch, cursors.popleft()
    except Exception as error:
        release_workers(error)
        if str(error).startswith("DataLoader worker (pid"):
            error.add_note(
                "A worker process of the loader exited without an error; it may have been killed for "
                "using too much memory. Write fewer workers or a smaller prefetch, or workers=0 to see "
                "the cause. To resume, pass the cursor of the last batch."
            )
        raise


def _as_it_is(batch: Any) -> Any:
    return batch


def _check_options(loader: Loader) -> None:
    check_seed(loader.seed)
    for name, least in (("batch_size", 1), ("workers", 0), ("prefetch", 0), ("ranks", 1)):
        value = getattr(loader, name)
        if not is_count(value, least):
            raise ArgumentError(
                name,
                f"expected an integer >= {least}, got {value!r}",
                f"Write {name}={least} or more.",
            )
    if loader.workers > _MOST_WORKERS:
        raise ValueError(
            f"workers: expected at most {_MOST_WORKERS} processes, got {loader.workers}. Write at most "
            "the number of processor cores."
        )
    if not is_count(loader.rank, 0) or loader.rank >= loader.ranks:
        raise ValueError(
            f"rank: expected a number from 0 to ranks - 1 = {loader.ranks - 1}, got {loader.rank!r}. "
            "Pass the rank of this process."
        )
    if loader.batch_size % loader.ranks:
        raise ArgumentError(
            "batch_size",
            f"expected a multiple of ranks = {loader.ranks}, because batch_size counts the samples of "
            f"all ranks, got {loader.batch_size}",
            "Change batch_size or ranks.",
        )
    if loader.last_batch not in (None, "drop", "keep", "pad"):
        raise ValueError(
            f'last_batch: expected "drop", "keep" or "pad", got {loader.last_batch!r}. Write "drop".'
        )
    if loader.sampler is not None and not isinstance(loader.sampler, Sampler):
        raise TypeError(
            "sampler: expected an object with __len__ and at(positions, seed=..., epoch=...), got "
            f"{type(loader.sampler).__name__}. Write data.Shuffled, data.Weighted, ... instead of "
            "torch's samplers, which keep a state of their own."
        )
