"""What the loggers that write rows to a file have in common.

The number of rows is the logger's state, so a checkpoint knows how far the log had got: a run that goes
on from it cuts the file back to that many rows first. Nothing is logged twice, and nothing is missing.
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
    """How far a log has got.

    Attributes:
        rows: written so far.
    """

    rows: int


class RowLogger(abc.ABC):
    """A logger to a file of rows. One that cannot write warns, and the run goes on.

    Attributes:
        path: of the file.
    """

    listens = (TrainBegin, Logged)
    on_error = "warn"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        self._before = 0.0  # seconds that the processes took which this one goes on from

    def init(self) -> Rows:
        """No row yet."""
        return {"rows": 0}

    def __call__(self, state: Rows, event: Event) -> tuple[Rows, tuple[Action, ...]]:
        """A row for each `Logged`; another rank than 0 only counts."""
        if isinstance(event, TrainBegin):
            rows = state["rows"] if event.resumed else 0
            if is_main():
                rows, self._before = self._begin(rows)
            return {"rows": rows}, ()
        assert isinstance(event, Logged)
        if is_main():
            progress = event.progress
            head = {
                "step": progress.step,
                "epoch": progress.epoch,
                "split": event.split,
                "time": round(self._before + event.seconds, 3),
            }
            self._write({**head, **event.values})
        return {"rows": state["rows"] + 1}, ()

    @abc.abstractmethod
    def _begin(self, rows: int) -> tuple[int, float]:
        """Cut the file back to so many rows; how many it has then, and the time of the last one."""

    @abc.abstractmethod
    def _write(self, row: Mapping[str, Any]) -> None:
        """Add a row."""
