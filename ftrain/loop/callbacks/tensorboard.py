"""Logging of rows to TensorBoard."""

from __future__ import annotations

import os
from typing import Any

from ftrain.loop.callback import Action
from ftrain.loop.callbacks._optional import need
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import Event, Logged, Saved, TrainBegin, TrainEnd

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger:
    """Write scalars such as `train/loss` by step, with `torch.utils.tensorboard`.

    A resumed run makes TensorBoard discard the steps after its checkpoint (`purge_step`).

    Args:
        folder: directory of the event files.

    Raises:
        ImportError: tensorboard is not installed.

    Example:
        >>> callback = TensorBoardLogger("runs/first/tensorboard")  # doctest: +SKIP
    """

    listens = (TrainBegin, Logged, Saved, TrainEnd)
    on_error = "warn"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._writer_of = need(
            "torch.utils.tensorboard", "TensorBoardLogger", "tensorboard"
        ).SummaryWriter
        self._folder = os.fspath(folder)
        self._writer: Any = None

    def init(self) -> None:
        """Return no state, because the files contain the steps."""

    def __call__(self, state: None, event: Event) -> tuple[None, tuple[Action, ...]]:
        """Write the row to TensorBoard."""
        if not is_main():
            return None, ()
        step = event.progress.step
        if isinstance(event, TrainBegin):
            purge = step + 1 if event.resumed else None
            self._writer = self._writer_of(self._folder, purge_step=purge)
        elif isinstance(event, Logged):
            for name, value in event.values.items():
                self._writer.add_scalar(f"{event.split}/{name}", value, step)
        elif isinstance(event, Saved):
            self._writer.flush()
        elif self._writer is not None:
            self._writer.close()
            self._writer = None
        return None, ()
