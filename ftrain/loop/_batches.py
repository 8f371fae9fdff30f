"""Conversion of training data to pairs of a batch and the position (cursor) after it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ftrain.core.accumulate import MicroBatches
from ftrain.core.errors import ArgumentError
from ftrain.data import Cursor, Loader, Stream

__all__ = [
    "Batches",
    "Listed",
    "as_batches",
    "check_padding",
    "check_position",
    "joined",
    "length",
    "no_batches",
    "opened",
    "steps_left",
    "steps_per_epoch",
]


class Batches(Protocol):
    """Protocol of training data, implemented by `Loader` and `Stream`."""

    def start(self) -> Cursor:
        """Return the cursor (position in the data) before the first batch."""

    def batches(
        self, cursor: Cursor | None = None, epochs: int | None = 1
    ) -> Iterator[tuple[Any, Cursor]]:
        """Return the batches from a cursor on, each paired with the cursor after it."""


def as_batches(data: Any, argument: str) -> Batches:
    """Return training data as `Batches`: a `Loader` or `Stream` unchanged, other data wrapped.

    Args:
        data: a `Loader`, a `Stream`, a list of batches, an iterable, or a function of the epoch.
        argument: the name of the argument in messages.

    Raises:
        TypeError: the data is of another kind, or can be iterated only once.
        ValueError: the list is empty.
    """
    if callable(getattr(data, "batches", None)) and callable(getattr(data, "start", None)):
        return data  # type: ignore[no-any-return]
    if isinstance(data, (list, tuple)):
        if not data:
            raise ValueError(
                f"{argument}: expected at least one batch, got {data!r}. Pass data with at least "
                "one batch."
            )
        return Listed(data)
    if isinstance(data, (Mapping, str)):
        raise TypeError(
            f"{argument}: expected batches, got a {type(data).__name__}, which iterates over its keys "
            f"or characters. Write {argument}=data.Loader({{'x': ..., 'y': ...}}, batch_size=32), or "
            "pass a list of batches."
        )
    if isinstance(data, Iterator):
        raise TypeError(
            f"{argument}: expected data that can be iterated again for each epoch and on resume, got a "
            f"{type(data).__name__}, which can be iterated only once. Pass a list of batches, a "
            f"data.Loader, or a function that returns an iterable: {argument}=lambda epoch: "
            "batches(...)."
        )
    if hasattr(data, "__iter__"):
        return Stream(data)
    if callable(data):
        return Stream(EpochFunction(data))
    raise TypeError(
        f"{argument}: expected a data.Loader, an iterable of batches, or a function `epoch -> "
        f"iterable`, got {type(data).__name__}. Pass a data.Loader or a list of batches."
    )


def check_padding(data: Any, step: Any) -> None:
    """Raise if padding rows would enter a model's batch statistics, such as those of BatchNorm.

    Raises:
        ValueError: the data pads its last batch, and the model has a module in training mode that takes
            statistics over the rows of a batch.
    """
    source: Any = data.source if isinstance(data, Stream) else data
    rows, names = getattr(source, "padding", 0), getattr(step, "batch_statistics", ())
    if rows and names:
        listed = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f'train_data has last_batch="pad", which adds {rows} rows of weight zero to the last batch '
            "of an epoch, and the model has modules that take statistics over all rows of a batch in "
            f'training: {listed}. Write last_batch="drop" or last_batch="keep", or use GroupNorm or '
            "LayerNorm."
        )


def length(data: Any) -> int | None:
    """Return the number of batches in one epoch of some data; `None` if the data has no length."""
    source: Any = data.source if isinstance(data, Stream) and data.batch_size is None else data
    try:
        return len(source)
    except (TypeError, NotImplementedError):  # an IterableDataset in a DataLoader
        return None


def steps_per_epoch(data: Any, accumulate: int) -> int | None:
    """Return the number of steps in one epoch of some data; `None` if the data has no length."""
    batches = length(data)
    return None if batches is None else -(-batches // accumulate)


def steps_left(data: Any, cursor: Cursor, accumulate: int) -> int | None:
    """Return the number of steps from a cursor to the end of its epoch; `None` if it is unknown."""
    if isinstance(data, Loader):  # its positions count samples, those of the others count batches
        return -(-data._remaining(cursor.position) // accumulate)
    batches = length(data) if isinstance(data, (Listed, Stream)) else None
    return None if batches is None else -(-(batches - cursor.position) // accumulate)


def check_position(data: Batches, cursor: Cursor) -> None:
    """Raise if the position in a checkpoint was made for other training data, or in another order."""
    now = data.start()
    for what, was, found, words in (
        ("the data", cursor.of, now.of, 0),
        # Only the hash, the last word, is compared, so that a sampler can be renamed.
        ("the order of the data", cursor.sampler, now.sampler, -1),
    ):
        if was and found and was.split()[words:] != found.split()[words:]:
            raise ArgumentError(
                "train_data",
                f"expected {what} of the checkpoint, {was}, got {found}",
                "Pass the loader that the run began with; or load the checkpoint's state, and call fit "
                "without `resume` and with another store.",
            )


@contextlib.contextmanager
def opened(
    data: Batches, cursor: Cursor | None, epochs: int | None
) -> Iterator[Iterator[tuple[Any, Cursor]]]:
    """Iterate from a cursor until `epochs` epochs are complete; on exit, stop the data workers."""
    left = epochs if epochs is None or cursor is None else epochs - cursor.epoch
    batches = iter(data.batches(cursor, left))
    try:
        yield batches
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def no_batches(epoch: int) -> ValueError:
    """Return the error for training data that has no batch in an epoch."""
    return ValueError(
        f"train_data: expected batches in epoch {epoch}, got none. Pass data with at least one batch in "
        "each epoch."
    )


def joined(
    pairs: Iterator[tuple[Any, Cursor]], k: Callable[[], int], rows: Callable[[Any], int]
) -> Iterator[tuple[Any, Cursor]]:
    """Yield the batches of an epoch with every k consecutive ones joined into one `MicroBatches`.

    If the last batch of an epoch is smaller, a loss without a weight is weighted by rows, so that it is
    the mean over all of them.

    Args:
        pairs: batches, each with the cursor after it.
        k: returns the number of batches to join.
        rows: `batch -> number of rows`.
    """
    group: list[Any] = []
    for batch, cursor in pairs:
        if not group and k() == 1:
            yield batch, cursor
            continue
        group.append(batch)
        if len(group) >= k() or not cursor.position:
            sizes = tuple(map(rows, group))
            # Relative to a full batch, which counts one on ranks that have no smaller batch, too.
            differ = len(set(sizes)) > 1 and min(sizes) > 0
            weights = tuple(size / max(sizes) for size in sizes) if differ else ()
            yield MicroBatches(tuple(group), weights) if len(group) > 1 else group[0], cursor
            group = []


@dataclasses.dataclass(frozen=True, eq=False)
class Listed:
    """Training data that repeats one list of batches in each epoch."""

    listed: Sequence[Any]

    def __len__(self) -> int:
        return len(self.listed)

    def start(self) -> Cursor:
        return Cursor(0, of=f"a list of {len(self.listed)} batches")

    def batches(
        self, cursor: Cursor | None = None, epochs: int | None = 1
    ) -> Iterator[tuple[Any, Cursor]]:
        of = self.start().of
        cursor = cursor or self.start()
        cursor.check(of)
        seed, epoch, position = cursor.seed, cursor.epoch, cursor.position
        end = None if epochs is None else epoch + epochs
        listed, last = self.listed, len(self.listed)
        while epoch != end:
            for i in range(position, last):
                after = i + 1
                yield (
                    listed[i],
                    Cursor(seed, epoch, after, None, of)
                    if after < last
                    else Cursor(seed, epoch + 1, 0, None, of),
                )
            epoch, position = epoch + 1, 0


class EpochFunction:
    """Iterable over the batches that `function(epoch)` returns; `set_epoch` sets the epoch."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self._function, self._epoch = function, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return iter(self._function(self._epoch))
