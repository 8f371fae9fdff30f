"""Batches from iterable datasets, and from loaders of other libraries.

    stream = data.Stream(hugging_face_dataset, batch_size=32)       # or a DataLoader, unchanged
    for batch, cursor in stream.batches(cursor): ...

Read next: `loader.py`, which resumes exactly with any number of workers, for data with length and items.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from ftrain.data._collate import collate_samples
from ftrain.data._device import transferred
from ftrain.data._fetch import Collate, sample_keys
from ftrain.data._generators import preserved_generators, seed_generators
from ftrain.data._own_generators import own_generators, seed_own_generators
from ftrain.data._release_workers import release_workers
from ftrain.data.cursor import Cursor, check_seed, checked, convert_integers, is_count

__all__ = ["Stream"]

_END = object()
_PARTS = ("dataset", "sampler", "batch_sampler")


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Loader of batches from any iterable; with each batch, it yields the position to resume from.

    Resuming: a source with `state_dict` and `load_state_dict` (torchdata's StatefulDataLoader, Hugging
    Face's IterableDataset) resumes from its own state, which is stored in the cursor. Any other source
    is read again up to the cursor. Both are exact only with an unchanged number of the source's own
    workers, which determines the order. Some states are incomplete: a StatefulDataLoader restores the
    samples that its workers read, but not their random draws, and Hugging Face refills a shuffle buffer.
    If that matters, pass `replay=True` to read again instead. Persistent workers are restarted in each
    epoch, because their draws would depend on all earlier epochs.

    The global generators of torch (CPU), numpy and Python are seeded from (seed, epoch, position) while
    the source is read, and restored for the caller, so that a plain `DataLoader(dataset, shuffle=True)`
    gives the same batches every time. If the source, or a DataLoader's dataset or sampler, has a method
    `set_epoch`, it is called with the epoch. Generators that they keep as attributes (of torch, numpy
    or Python) are seeded at the beginning of each epoch.

    Attributes:
        source: an iterable that starts again each time it is iterated over, so not a generator.
        batch_size: the number of items in a batch; `None` if the source's items are already batches.
        seed: the seed of the source's draws: an integer of 64 bits.
        replay: True to read the source again up to the cursor, even if it has its own state.
        collate: `collate(items) -> batch`, used with `batch_size`; default: torch's, except
            that a list of numbers in an item is an array.
        device: the device of the batches; `None`: unchanged.

    Raises:
        TypeError: the source cannot be iterated over, or only once.

    Example:
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
    replay: bool = False
    collate: Collate | None = None
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        convert_integers(self, "batch_size", "seed")
        check_seed(self.seed)
        if self.batch_size is not None and not is_count(self.batch_size, 1):
            raise ValueError(
                f"batch_size: expected an integer >= 1, got {self.batch_size!r}. Write batch_size=32."
            )
        if not hasattr(self.source, "__iter__") or isinstance(self.source, Iterator):
            raise TypeError(
                "source: expected an iterable that starts anew on each iteration, got "
                f"{type(self.source).__name__}. Pass an object whose __iter__ returns a new iterator."
            )

    def start(self) -> Cursor:
        """Return the cursor (position in the data) before the first batch of the first epoch."""
        return Cursor(self.seed, of=self._of)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the first epoch, without cursors."""
        return (batch for batch, _ in self.batches())

    def batches(
        self, cursor: Cursor | None = None, epochs: int | None = 1
    ) -> Iterator[tuple[Any, Cursor]]:
        """Yield the batches that follow `cursor`, each with the cursor after that batch.

        The source is read one batch ahead, to determine the last batch of an epoch.

        Raises:
            ValueError: the source ends before the cursor, or the cursor was made by a `Loader`,
                or for another batch size.
        """
        cursor = self.start() if cursor is None else checked(cursor, self._of)
        if epochs is not None and not is_count(epochs, 0):
            raise ValueError(
                f"epochs: expected an integer >= 0, or None for no limit, got {epochs!r}. Write "
                "epochs=1."
            )
        found = self._run(cursor, epochs)
        return found if self.device is None else transferred(found, torch.device(self.device), 0)

    @property
    def _of(self) -> str:
        """Return a text by which a cursor identifies its stream, such as `a stream of 100`."""
        try:
            length = f" of {len(self.source)}"  # type: ignore[arg-type]  # may have none
        except (TypeError, NotImplementedError):  # torch's iterable datasets have no length
            length = ""
        batches = "" if self.batch_size is None else f", in batches of {self.batch_size}"
        return f"a stream{length}{batches}"

    def _run(self, cursor: Cursor, epochs: int | None) -> Iterator[tuple[Any, Cursor]]:
        end = None if epochs is None else cursor.epoch + epochs
        while cursor.epoch != end:
            try:
                cursor = yield from self._epoch(cursor)
            except BaseException as error:
                release_workers(error)
                raise

    def _epoch(self, cursor: Cursor) -> Generator[tuple[Any, Cursor], None, Cursor]:
        """Yield the remaining batches of an epoch; return the cursor of the next epoch."""
        seed, epoch = cursor.seed, cursor.epoch
        restored = cursor.state is not None and not self.replay
        items = self._begun(cursor, restored)
        position = cursor.position if restored else 0
        batch, state = self._read(items, seed, epoch, position)
        if batch is _END and restored and not position:
            # The source was exhausted when its state was saved: start the next pass.
            items = iter(self._anew())
            batch, state = self._read(items, seed, epoch, position)
        while batch is not _END:
            position += 1
            ahead, state_ahead = self._read(items, seed, epoch, position)
            if position > cursor.position:
                last = ahead is _END
                yield (
                    batch,
                    Cursor(seed, epoch + 1, 0, state_ahead, self._of)
                    if last
                    else Cursor(seed, epoch, position, state, self._of),
                )
            batch, state = ahead, state_ahead
        if position < max(cursor.position, 1):
            raise ValueError(
                f"source: expected at least {max(cursor.position, 1)} batches in epoch {epoch}, got "
                f"{position} from {type(self.source).__name__}: it is empty, or the cursor was made for "
                "other data. Pass the source that the cursor was made for."
            )
        return Cursor(seed, epoch + 1, 0, state, self._of)

    def _begun(self, cursor: Cursor, restored: bool) -> Iterator[Any]:
        """Return an iterator over the source for the epoch of a cursor.

        If `restored`, the source first loads the state that the cursor holds.
        """
        key = sample_keys(cursor.seed, cursor.epoch, torch.tensor([0]))[0]
        with preserved_generators():
            seed_generators(key)
            parts: list[Any] = [self.source, *(getattr(self.source, n, None) for n in _PARTS)]
            inner = getattr(parts[-1], "sampler", None)
            parts += [] if any(inner is part for part in parts) else [inner]
            seeded = []
            for part in parts:
                if hasattr(part, "set_epoch"):
                    part.set_epoch(cursor.epoch)
                generator = getattr(part, "generator", None)
                if isinstance(generator, torch.Generator) and not restored:
                    generator.manual_seed(int(torch.randint(2**62, ())))
                    seeded.append(generator)
            if not restored:
                others = own_generators(self.source)
                seed_own_generators([g for g in others if not any(g is s for s in seeded)], key)
            if restored:
                if not hasattr(self.source, "load_state_dict"):
                    raise ValueError(
                        "source: expected a method load_state_dict that restores the state in the "
                        f"cursor, got {type(self.source).__name__} without it. Pass the kind of source "
                        "that the cursor was made for."
                    )
                self.source.load_state_dict(cursor.state)
            return iter(self._anew())

    def _anew(self) -> Iterable[Any]:
        """Return the source; copy a `DataLoader` with persistent workers, so that it starts new ones."""
        source = self.source
        if not (isinstance(source, DataLoader) and source.persistent_workers):
            return source
        if hasattr(source, "state_dict"):  # its state belongs to its own iterator
            return source
        source = copy.copy(source)
        vars(source)["persistent_workers"] = False  # torch rejects a normal assignment
        return source

    def _read(self, items: Iterator[Any], seed: int, epoch: int, position: int) -> tuple[Any, Any]:
        """Seed the random generators; return the batch at `position` and the source's state after it."""
        stateful = hasattr(self.source, "state_dict") and hasattr(self.source, "load_state_dict")
        with preserved_generators():
            seed_generators(sample_keys(seed, epoch, torch.tensor([position + 1]))[0])
            batch = self._next(items)
            if not stateful or self.replay:
                return batch, None
            return batch, self.source.state_dict()  # type: ignore[attr-defined]

    def _next(self, items: Iterator[Any]) -> Any:
        if self.batch_size is None:
            return next(items, _END)
        found = [item for _, item in zip(range(self.batch_size), items, strict=False)]
        return (self.collate or collate_samples)(found) if found else _END
