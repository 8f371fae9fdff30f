"""Rows of the log as lines for a person, above the progress bar if there is one."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import TextIO

from tqdm import tqdm

from ftrain.loop.callback import Action
from ftrain.loop.callbacks import _format
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import CompileBegin, CompileEnd, Event, Logged, Notice, TrainBegin

__all__ = ["ConsoleLogger"]


class ConsoleLogger:
    """Prints evaluations, epochs and what a person should know; all rows, if asked to.

    Two losses of training can be told apart by their words: `train (epoch mean)` is over a whole epoch,
    `train (last steps)`, which the progress bar shows too, over the last `log_every` steps.

    Args:
        splits: rows of which splits are printed; `None`: of all, those of windows ("train") included.
        stream: where to; default: standard output.

    >>> import torch, ftrain
    >>> from ftrain import loop, optim
    >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.0))
    >>> trainer = loop.Trainer(steps, [ConsoleLogger()], compile=False)
    >>> result = trainer.fit(steps.init_state(0), [torch.zeros(4, 3)], epochs=1)
    epoch 1    step 1       train (epoch mean)  loss ...  grad_norm 1 ... samples/s  ... s
    """

    listens = (TrainBegin, CompileBegin, CompileEnd, Logged, Notice)
    on_error = "warn"

    def __init__(
        self,
        splits: Collection[str] | None = ("train_epoch", "eval"),
        *,
        stream: TextIO | None = None,
    ) -> None:
        self._splits, self._stream = splits, stream

    def init(self) -> None:
        """Nothing: what was printed is not part of a run."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Print the event, if it is wanted."""
        line = self._line(event)
        if line and is_main():
            stream = sys.stdout if self._stream is None else self._stream
            # Of tqdm, so that a bar gives way; without one it is a print.
            tqdm.write(line, file=stream)
            stream.flush()  # a pipe would keep it until there is more
        return None, ()

    def _line(self, event: Event) -> str:
        if isinstance(event, Notice):
            return f"note: {event.message}"
        if isinstance(event, TrainBegin):
            progress = event.progress
            where = f"going on behind step {progress.step}, epoch {progress.epoch}"
            return where if event.resumed else ""
        if isinstance(event, (CompileBegin, CompileEnd)):
            return _format.compiling(event)
        assert isinstance(event, Logged)
        if self._splits is not None and event.split not in self._splits:
            return ""
        return _format.row(event.split, event.progress, event.values)
