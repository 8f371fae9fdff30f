"""Base class of the loggers that write rows to a file.

The number of rows is the logger's state, so a checkpoint records the length of the log: a resumed
run first truncates the file to that many rows. No row is repeated, and no row is missing.
"""

from __future__ import annotations

import abc
import os
import pathlib
from collections import deque
from collections.abc import Mapping
from typing import Any, TypedDict

from ftrain.loop.callback import Action
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import Event, Logged, TrainBegin, TrainEnd

__all__ = ["RowLogger", "Rows"]

_MOST_UNWRITTEN = 10_000  # rows kept after write errors; beyond that, the oldest row is lost


class Rows(TypedDict):
    """State of a row logger: the number of rows in its file.

    Attributes:
        rows: number of rows written so far.
    """

    rows: int


class RowLogger(abc.ABC):
    """Base class of loggers that write rows to a file.

    After a write error a logger warns, continues, and writes the row together with the next one.

    Attributes:
        path: path of the file.
    """

    listens: tuple[type[Event], ...] = (TrainBegin, Logged, TrainEnd)
    on_error = "warn"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self._before = 0.0  # seconds of the previous processes of this run
        self._begun = False  # True once the file is truncated to the number of rows in the state
        self._unwritten: deque[Mapping[str, Any]] = deque(maxlen=_MOST_UNWRITTEN)
        self._written = (
            0  # rows in the file that the state does not count, because a later write failed
        )

    @property
    def exclusive_files(self) -> tuple[pathlib.Path, ...]:
        """Files that no other run may write meanwhile: the log on rank 0, none on other ranks."""
        return (self.path,) if is_main() else ()

    def init(self) -> Rows:
        """Return the initial state of the logger: the file has 0 rows."""
        return {"rows": 0}

    def __call__(self, state: Rows, event: Event) -> tuple[Rows, tuple[Action, ...]]:
        """Write a row for each `Logged` event on rank 0; count the rows on all ranks."""
        if isinstance(event, TrainBegin):
            self._begun, self._written = False, 0
            self._unwritten.clear()
            state = state if event.resumed else {"rows": 0}
            return (self._opened(state) if is_main() else state), ()
        if isinstance(event, TrainEnd):
            return (self._flush(state) if self._unwritten else state), ()
        assert isinstance(event, Logged)
        return self._add(state, event, event.split, event.values), ()

    def _add(self, state: Rows, event: Event, split: str, values: Mapping[str, Any]) -> Rows:
        """Write a row, after earlier rows that could not be written; return the new state."""
        if not is_main():
            return {"rows": state["rows"] + 1}
        self._unwritten.append({**self._head(event, split), **values})
        return self._flush(state)

    def _flush(self, state: Rows) -> Rows:
        """Write the rows that are not in the file yet; return the state with the new count."""
        if self._unwritten and not self._begun:
            state = self._opened(state)
        while self._unwritten:
            row = self._unwritten.popleft()
            try:
                self._write(row)
            except OSError:  # such as on a full disk; the next row tries again
                self._unwritten.appendleft(row)
                raise
            self._written += 1
        rows, self._written = state["rows"] + self._written, 0
        return {"rows": rows}

    def _opened(self, state: Rows) -> Rows:
        rows, self._before = self._begin(state["rows"])
        self._begun = True
        return {"rows": rows}

    def _head(self, event: Event, split: str) -> dict[str, Any]:
        """Return the columns that identify a row of the log: step, epoch, split and time."""
        progress, seconds = event.progress, round(self._before + event.seconds, 3)
        return {"step": progress.step, "epoch": progress.epoch, "split": split, "time": seconds}

    @abc.abstractmethod
    def _begin(self, rows: int) -> tuple[int, float]:
        """Truncate the file to `rows` rows; return how many it then has, and the last row's time."""

    @abc.abstractmethod
    def _write(self, row: Mapping[str, Any]) -> None:
        """Append a row to the file."""
