"""What can only be iterated over: iterable datasets, and loaders that come from elsewhere.

    stream = data.Stream(hugging_face_dataset, batch_size=32)       # or a DataLoader, as it is
    for batch, cursor in stream.batches(cursor): ...

Read next: `loader.py`, which is exact for any number of workers where the data has length and items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import default_collate

from ftrain.data._device import transferred
from ftrain.data._fetch import Collate, preserved_generators, sample_keys, seed_generators
from ftrain.data.cursor import Cursor, check, check_seed, is_count

__all__ = ["Stream"]

_END = object()


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Batches of whatever has `__iter__`, with a cursor behind each.

    Resuming: a source with `state_dict` and `load_state_dict` (torchdata's StatefulDataLoader, Hugging
    Face's IterableDataset) goes on from its own state, which the cursor carries. Any other source is
    gone through again up to the cursor. Both are exact where the source is, and that is with the
    same number of its own workers only: they share out a stream, so another number makes another order.

    Whatever the source draws from the global generators of torch (CPU), numpy and Python is decided by
    (seed, epoch, position), and moves none of them for the caller: a plain
    `DataLoader(dataset, shuffle=True)` gives the same batches every time. `set_epoch(epoch)` is
    called on a source (or the dataset or sampler of a DataLoader) that has it.

    Attributes:
        source: an iterable that starts anew each time it is iterated over (no generator).
        batch_size: items to put together; `None`: its items are batches already.
        seed: of what the source draws: an integer of 64 bits.
        collate: `collate(items) -> batch`, where there is a batch size; default: torch's.
        device: where batches go; `None`: they stay.

    Raises:
        TypeError: the source cannot be iterated over, or only once.

    >>> stream = Stream(range(5), batch_size=2)
    >>> for batch, cursor in stream.batches():
    ...     print(batch, cursor.epoch, cursor.position)
    tensor([0, 1]) 0 1
    tensor([2, 3]) 0 2
    tensor([4]) 1 0
    """

    source: Iterable[Any]
    batch_size: int | None = None
    _: dataclasses.KW_ONLY
    seed: int = 0
    collate: Collate | None = None
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.batch_size is not None and not is_count(self.batch_size, 1):
            raise ValueError(f"batch_size counts from 1, found {self.batch_size!r}")
        if not hasattr(self.source, "__iter__") or isinstance(self.source, Iterator):
            raise TypeError(
                f"a stream's source starts anew each time it is iterated over; "
                f"{type(self.source).__name__} does not. Pass an object whose __iter__ makes an iterator"
            )

    def start(self) -> Cursor:
        """The cursor before the first batch of the first epoch."""
        return Cursor(self.seed)

    def __iter__(self) -> Iterator[Any]:
        """The batches of the first epoch, alone."""
        return (batch for batch, _ in self.batches())

    def batches(
        self, cursor: Cursor | None = None, epochs: int | None = 1
    ) -> Iterator[tuple[Any, Cursor]]:
        """The batches from `cursor` on, each with the cursor behind it; `Loader.batches` says more.

        The source is read one batch ahead, to know which batch is an epoch's last.

        Raises:
            ValueError: the source ends before the cursor.
        """
        cursor = self.start() if cursor is None else cursor
        check(cursor)
        if epochs is not None and not is_count(epochs, 0):
            raise ValueError(f"epochs counts from 0 (None: no end), found {epochs!r}")
        found = self._run(cursor, epochs)
        return found if self.device is None else transferred(found, torch.device(self.device), 0)

    def _run(self, cursor: Cursor, epochs: int | None) -> Iterator[tuple[Any, Cursor]]:
        end = None if epochs is None else cursor.epoch + epochs
        while cursor.epoch != end:
            following = Cursor(cursor.seed, cursor.epoch + 1)
            current = None
            for batch, after in self._epoch(cursor):
                if current is not None:
                    yield current
                current = batch, after
            if current is None and not cursor.position:
                raise ValueError(
                    f"{type(self.source).__name__} yielded nothing in epoch {cursor.epoch}"
                )
            if current is not None:
                yield current[0], following
            cursor = following

    def _epoch(self, cursor: Cursor) -> Iterator[tuple[Any, Cursor]]:
        """What is left of an epoch; the draws before batch k are seeded by k."""
        seed, epoch = cursor.seed, cursor.epoch
        stateful = hasattr(self.source, "state_dict") and hasattr(self.source, "load_state_dict")
        with preserved_generators():
            seed_generators(sample_keys(seed, epoch, torch.tensor([0]))[0])
            _set_epoch(self.source, epoch)
            if cursor.state is not None:
                self._load(cursor.state)
            items = iter(self.source)
        position = cursor.position if cursor.state is not None else 0
        while True:
            with preserved_generators():
                seed_generators(sample_keys(seed, epoch, torch.tensor([position + 1]))[0])
                batch = self._next(items)
                state = self.source.state_dict() if stateful else None  # type: ignore[attr-defined]
            if batch is _END:
                break
            position += 1
            if position > cursor.position:
                yield batch, Cursor(seed, epoch, position, state)
        if position < cursor.position:
            raise ValueError(
                f"the cursor stands after {cursor.position} batches of epoch {epoch}, but "
                f"{type(self.source).__name__} has only {position}: it was made for other data"
            )

    def _load(self, state: Any) -> None:
        if not hasattr(self.source, "load_state_dict"):
            raise ValueError(
                f"the cursor carries the state of a source, but {type(self.source).__name__} has no "
                "load_state_dict: it was made by another kind of source"
            )
        self.source.load_state_dict(state)

    def _next(self, items: Iterator[Any]) -> Any:
        if self.batch_size is None:
            return next(items, _END)
        found = [item for _, item in zip(range(self.batch_size), items, strict=False)]
        return (self.collate or default_collate)(found) if found else _END


def _set_epoch(source: Any, epoch: int) -> None:
    for owner in (source, *(getattr(source, name, None) for name in ("dataset", "sampler"))):
        if hasattr(owner, "set_epoch"):
            owner.set_epoch(epoch)
