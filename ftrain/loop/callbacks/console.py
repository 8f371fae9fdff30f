"""Console output: rows of the log as readable lines, above the progress bar if there is one."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from typing import TextIO

from tqdm import tqdm

from ftrain.core._terminal import printable
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
    """Print a line for each evaluation, each epoch and each notice; with `splits=None`, for every row.

    Two training losses have different labels: `train (epoch mean)` is the mean over a whole epoch,
    `train (last steps)`, which the progress bar shows too, the mean over the last `log_every` steps.

    If epochs are short, a row is printed only if at least `every` seconds have passed since the last
    printed row; log files have all rows. The first and the last rows are always printed.

    Args:
        splits: the splits whose rows are printed; `None`: all, including windows ("train").
        every: minimum seconds between the printed rows of two steps; 0: all rows are printed.
        stream: the output stream; default: standard output.

    Raises:
        ValueError: `every` is negative.

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
            raise ValueError(
                f"every: expected a number of seconds of at least 0, got {every!r}. Write every=10."
            )
        self._splits, self._every, self._stream = splits, every, stream
        self._begin()

    def init(self) -> None:
        """Return `None` as the state of this callback: printed lines are not saved in checkpoints."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Print a notice, or a row of the log that `splits` and `every` select."""
        if is_main():
            for line in self._lines(event):
                self._print(printable(line))
        return None, ()

    def _begin(self) -> None:
        self._step = -1  # step of the last row
        self._due = 0.0  # in seconds of the run
        self._left_out: list[str] | None = None  # unprinted rows of that step; `None` if printed
        self._failed = False  # True after a failed write

    def _print(self, line: str) -> None:
        """Print a line; after a failure, such as a full or closed output, print no more in this run."""
        out = self._out()
        if out is None or self._failed:
            return
        try:
            # tqdm.write clears an active bar before it prints; without a bar it is a plain print.
            tqdm.write(line, file=out)
            out.flush()  # otherwise a pipe would hold the line back
        except OSError:
            self._failed = True
            raise

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
        where = f"resuming after step {progress.step}, epoch {progress.epoch}"
        return [where] if event.resumed else []

    def _rows(self, event: Logged) -> list[str]:
        if self._splits is not None and event.split not in self._splits:
            return []
        progress = event.progress
        if progress.step != self._step:  # a later row of the step is printed if its first row was
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

    def _out(self) -> TextIO | None:  # `None` if the process has no standard output
        return sys.stdout if self._stream is None else self._stream


def _width(stream: TextIO | None) -> int | None:
    """Return the current width of a terminal; `None` if the stream is not a terminal."""
    if stream is None:
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None
