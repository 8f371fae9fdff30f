"""Rows of the log as lines for a person, above the progress bar if there is one."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from typing import TextIO

from tqdm import tqdm

from ftrain.loop.callback import Action
from ftrain.loop.callbacks import _format
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import (
    CompileBegin,
    CompileEnd,
    Event,
    Logged,
    Notice,
    TrainBegin,
    TrainEnd,
)

__all__ = ["ConsoleLogger"]


class ConsoleLogger:
    """Prints evaluations, epochs and what a person should know; all rows, if asked to.

    Two losses of training can be told apart by their words: `train (epoch mean)` is over a whole epoch,
    `train (last steps)`, which the progress bar shows too, over the last `log_every` steps.

    Where epochs are short, only those rows are printed that come `every` seconds after the last ones;
    files have all of them. The first and the last are always there.

    Args:
        splits: rows of which splits are printed; `None`: of all, those of windows ("train") included.
        every: seconds between the rows of one step and the next; 0: all rows.
        stream: where to; default: standard output.

    Example:
        >>> import torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.0))
        >>> trainer = loop.Trainer(steps, [ConsoleLogger()], compile=False)
        >>> result = trainer.fit(steps.init_state(0), [torch.zeros(4, 3)], epochs=1)
        epoch 1    step 1       train (epoch mean)  loss ...  grad_norm 1 ... samples/s  ... s
    """

    listens = (TrainBegin, CompileBegin, CompileEnd, Logged, Notice, TrainEnd)
    on_error = "warn"

    def __init__(
        self,
        splits: Collection[str] | None = ("train_epoch", "eval"),
        *,
        every: float = 5.0,
        stream: TextIO | None = None,
    ) -> None:
        if not every >= 0:
            raise ValueError(f"every counts seconds from 0 up, found {every!r}")
        self._splits, self._every, self._stream = splits, every, stream
        self._begin()

    def init(self) -> None:
        """Return no state: printed lines are not part of a run."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Print the event, if it is selected."""
        if is_main():
            for line in self._lines(event):
                # Of tqdm, so that a bar gives way; without one it is a print.
                tqdm.write(line, file=self._out())
                self._out().flush()  # a pipe would keep it until there is more
        return None, ()

    def _begin(self) -> None:
        self._step = -1  # of the last row
        self._due = 0.0  # seconds of the run
        self._left_out: list[str] | None = None  # of that step; `None` where its rows are printed

    def _lines(self, event: Event) -> list[str]:
        if isinstance(event, Logged):
            return self._rows(event)
        if isinstance(event, TrainEnd):
            return self._left_out or []
        if isinstance(event, Notice):
            return [f"note: {event.message}"]
        if isinstance(event, (CompileBegin, CompileEnd)):
            return [_format.compiling(event)]
        assert isinstance(event, TrainBegin)
        self._begin()
        progress = event.progress
        where = f"going on behind step {progress.step}, epoch {progress.epoch}"
        return [where] if event.resumed else []

    def _rows(self, event: Logged) -> list[str]:
        if self._splits is not None and event.split not in self._splits:
            return []
        progress = event.progress
        if progress.step != self._step:  # else: as the row before it
            self._step = progress.step
            due = event.seconds >= self._due
            self._left_out = None if due else []
            if due:
                self._due = event.seconds + self._every
        line = _format.row(event.split, progress, event.values, _width(self._out()))
        if self._left_out is None:
            return [line]
        self._left_out.append(line)
        return []

    def _out(self) -> TextIO:
        return sys.stdout if self._stream is None else self._stream


def _width(stream: TextIO) -> int | None:
    """Return the width of the terminal, if it is one; it may have been resized."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None
