"""Base class of the loggers that write rows to a file.

The number of rows is the logger's state, so a checkpoint records the length of the log: a resumed
run first truncates the file to that many rows. No row is repeated, and none is missing.
"""

from __future__ import annotations

import abc
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypedDict

from ftrain.loop.callback import Action
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import Event, Logged, TrainBegin

__all__ = ["RowLogger", "Rows"]


class Rows(TypedDict):
    """State of a row logger: the number of rows in its file.

    Attributes:
        rows: number of rows written so far.
    """

    rows: int


class RowLogger(abc.ABC):
    """Base class of loggers that write rows to a file; after a write error they warn and continue.

    Attributes:
        path: path of the file.
    """

    listens: tuple[type[Event], ...] = (TrainBegin, Logged)
    on_error = "warn"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self._before = 0.0  # seconds of the previous processes of this run

    def init(self) -> Rows:
        """Return the initial state: no row is written yet."""
        return {"rows": 0}

    def __call__(self, state: Rows, event: Event) -> tuple[Rows, tuple[Action, ...]]:
        """Write a row for each `Logged` event on rank 0; count the rows on all ranks."""
        if isinstance(event, TrainBegin):
            rows = state["rows"] if event.resumed else 0
            if is_main():
                rows, self._before = self._begin(rows)
            return {"rows": rows}, ()
        assert isinstance(event, Logged)
        if is_main():
            self._write({**self._head(event, event.split), **event.values})
        return {"rows": state["rows"] + 1}, ()

    def _head(self, event: Event, split: str) -> dict[str, Any]:
        """Return the columns that identify a row."""
        progress, seconds = event.progress, round(self._before + event.seconds, 3)
        return {"step": progress.step, "epoch": progress.epoch, "split": split, "time": seconds}

    @abc.abstractmethod
    def _begin(self, rows: int) -> tuple[int, float]:
        """Truncate the file to `rows` rows; return how many remain and the time in the last one."""

    @abc.abstractmethod
    def _write(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
