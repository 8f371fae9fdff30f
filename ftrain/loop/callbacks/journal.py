"""Text log of a run, `train.log`, with the time of day of each line."""

from __future__ import annotations

import contextlib
import datetime
import os
import pathlib
import traceback

from ftrain.core import _file_output
from ftrain.core._terminal import printable
from ftrain.loop.callback import Action
from ftrain.loop.callbacks import _format
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import (
    CompileEnd,
    Event,
    Failure,
    Logged,
    Notice,
    Saved,
    TrainBegin,
    TrainEnd,
)

__all__ = ["FileLogger"]


class FileLogger:
    """Write log rows, checkpoints, notices, warnings and failures (with traceback) to a text file.

    No line is ever removed. A resumed run adds a line that records this, and the lines of repeated
    steps follow; for a log without repetitions see `JSONLLogger`.

    Args:
        path: path of the file; its directory is created if missing.

    Example:
        >>> import tempfile, torch, ftrain
        >>> from ftrain import loop, optim
        >>> steps = ftrain.make_steps(torch.nn.Linear(3, 1), lambda m, b: m(b).mean(), optim.sgd(0.1))
        >>> path = tempfile.mkdtemp() + "/train.log"
        >>> trainer = loop.Trainer(steps, [FileLogger(path)], compile=False, log_every=1)
        >>> result = trainer.fit(steps.init_state(0), [torch.ones(4, 3)], max_steps=1)
        >>> print(open(path).read())
        2... begins: to step 1
        2... epoch 1    step 1       train (last steps)  loss ...
        2... epoch 1    step 1       train (epoch mean)  loss ...
        2... completed at step 1, epoch 1: 1 step
    """

    listens = (TrainBegin, CompileEnd, Logged, Notice, Saved, Failure, TrainEnd)
    on_error = "warn"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)

    @property
    def exclusive_files(self) -> tuple[pathlib.Path, ...]:
        """Files that no other run may write meanwhile: the log on rank 0, none on other ranks."""
        return (self.path,) if is_main() else ()

    def init(self) -> None:
        """Return `None` as the state of this callback: the text file is not saved in checkpoints."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Write a line about an event to the text file."""
        self._append(_line_for(event))
        return None, ()

    def write_note(self, note: str) -> None:
        """Write a line without an event, such as a warning, to the log; ignore write errors."""
        with contextlib.suppress(OSError):
            self._append(note)

    def _append(self, text: str) -> None:
        if is_main():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
            _file_output.append(self.path, printable(f"{now}  {text}"))


def _line_for(event: Event) -> str:
    progress = event.progress
    if isinstance(event, Logged):
        return _format.row(event.split, progress, event.values)
    if isinstance(event, Saved):
        return f"saved {event.path or ''} ({event.tag})"
    if isinstance(event, CompileEnd):
        return _format.compiling(event)
    if isinstance(event, Notice):
        return f"note: {event.message}"
    if isinstance(event, Failure):
        trace = "".join(traceback.format_exception(event.exception)).rstrip()
        return f"failed ({event.where}) after step {progress.step}:\n{trace}"
    if isinstance(event, TrainBegin):
        plan = event.plan
        ends = [] if plan.epochs is None else [f"epoch {plan.epochs}"]
        ends += [] if plan.max_steps is None else [f"step {plan.max_steps}"]
        begins = f"resumes after step {progress.step}" if event.resumed else "begins"
        return f"{begins}: to {' or '.join(ends)}"
    assert isinstance(event, TrainEnd)
    result = event.result
    return f"{result.status} at step {result.step}, epoch {result.epoch}: {result.reason}"
