"""Sources of batches for a `TrainingMachine`, by position and as a resumable iterator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from ftrain.data.cursor import Cursor

__all__ = ["Feed", "ListFeed", "LoaderFeed", "feed_of"]


class ListFeed:
    """Batches of a sequence, repeated endlessly; the cursor counts the batches already taken."""

    has_workers = False

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def expected(self, position: int) -> Any:
        """Return the batch at a position."""
        return self._batches[position % len(self._batches)]

    def stream(self, cursor: Any, workers: int) -> Iterator[tuple[Any, Any]]:
        """Yield `(batch, cursor after it)` from a cursor onwards; `None` is the start of the data."""
        position = 0 if cursor is None else int(cursor)
        while True:
            yield self.expected(position), position + 1
            position += 1


class LoaderFeed:
    """Batches of a `ftrain.data.Loader`; the cursor is the loader's own cursor as JSON."""

    has_workers = True

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._known: list[Any] = []
        self._plain = dataclasses.replace(loader, workers=0)
        self._rest = self._plain.batches(self._plain.start(), epochs=None)

    def expected(self, position: int) -> Any:
        """Return the batch at a position, fetched in this process."""
        while len(self._known) <= position:
            self._known.append(next(self._rest)[0])
        return self._known[position]

    def stream(self, cursor: Any, workers: int) -> Iterator[tuple[Any, Any]]:
        """Yield `(batch, cursor after it)` from a cursor onwards; `None` is the start of the data."""
        loader = dataclasses.replace(self._loader, workers=workers)
        at = loader.start() if cursor is None else Cursor.from_json(cursor)
        for batch, after in loader.batches(at, epochs=None):
            yield batch, after.to_json()


Feed = ListFeed | LoaderFeed


def feed_of(batches: Any) -> Feed:
    """Return the source of batches for a sequence of batches or a loader.

    Raises:
        TypeError: it is neither.
        ValueError: it is empty.
    """
    if dataclasses.is_dataclass(batches) and callable(getattr(batches, "batches", None)):
        return LoaderFeed(batches)
    if not isinstance(batches, Sequence) or isinstance(batches, (str, bytes)):
        raise TypeError(
            "batches: expected a sequence of batches or a ftrain.data.Loader, got "
            f"{type(batches).__name__}. Put the batches into a list."
        )
    if not batches:
        raise ValueError("batches: expected at least one batch, got none. Pass [batch].")
    return ListFeed(batches)
