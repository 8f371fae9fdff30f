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
        self._begun = False  # the file has been truncated to the rows of the state

    def init(self) -> Rows:
        """Return the initial state: no row is written yet."""
        return {"rows": 0}

    def __call__(self, state: Rows, event: Event) -> tuple[Rows, tuple[Action, ...]]:
        """Write a row for each `Logged` event on rank 0; count the rows on all ranks."""
        if isinstance(event, TrainBegin):
            self._begun = False
            state = state if event.resumed else {"rows": 0}
            return (self._opened(state) if is_main() else state), ()
        assert isinstance(event, Logged)
        return self._add(state, event, event.split, event.values), ()

    def _add(self, state: Rows, event: Event, split: str, values: Mapping[str, Any]) -> Rows:
        """Write a row on rank 0; return the state with one row more."""
        if is_main():
            # After an error at the start of the run, on a full disk for example, try again.
            state = state if self._begun else self._opened(state)
            self._write({**self._head(event, split), **values})
        return {"rows": state["rows"] + 1}

    def _opened(self, state: Rows) -> Rows:
        rows, self._before = self._begin(state["rows"])
        self._begun = True
        return {"rows": rows}

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
