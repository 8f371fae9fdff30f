"""Logging of rows to TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ftrain.loop.callback import Action
from ftrain.loop.callbacks._optional import flattened, need, refused
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import Event, Logged, Saved, TrainBegin, TrainEnd
from ftrain.loop.result import FitResult

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger:
    """Write scalars such as `train/loss` by step, with `torch.utils.tensorboard`.

    A resumed run makes TensorBoard discard the steps after its checkpoint (`purge_step`).

    Args:
        folder: directory of the event files; in a configuration, by default `${run}/tensorboard`.
        hyperparameters: shown as the text "config" from the beginning, and in the table HPARAMS beside
            the last metrics when the run ends; in a configuration, by default the whole configuration.

    Raises:
        ImportError: tensorboard is not installed.

    Example:
        >>> callback = TensorBoardLogger("runs/first/tensorboard")  # doctest: +SKIP
    """

    listens = (TrainBegin, Logged, Saved, TrainEnd)
    on_error = "warn"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        self._writer_of = need(
            "torch.utils.tensorboard", "TensorBoardLogger", "tensorboard"
        ).SummaryWriter
        self._folder = os.fspath(folder)
        self._hyperparameters = flattened(hyperparameters or {})
        self._writer: Any = None

    def init(self) -> None:
        """Return `None` as the state of this callback: the event files record the steps."""

    def __call__(self, state: None, event: Event) -> tuple[None, Iterable[Action]]:
        """Write a row of the log to TensorBoard."""
        if not is_main():
            return None, ()
        step = event.progress.step
        if isinstance(event, TrainBegin):
            purge = step + 1 if event.resumed else None
            try:
                self._writer = self._writer_of(self._folder, purge_step=purge)
            except Exception as error:
                self._writer = None
                return None, refused("TensorBoardLogger", error, "Choose another folder.")
            if self._hyperparameters:
                lines = [f"    {name}: {value}" for name, value in self._hyperparameters.items()]
                self._writer.add_text("config", "\n".join(lines), step)
        elif self._writer is None:  # `None` if the writer could not be opened
            return None, ()
        elif isinstance(event, Logged):
            for name, value in event.values.items():
                self._writer.add_scalar(f"{event.split}/{name}", value, step)
        elif isinstance(event, Saved):
            self._writer.flush()
        elif isinstance(event, TrainEnd):
            self._end(event.result)
        return None, ()

    def _end(self, result: FitResult) -> None:
        """Write the run's row in TensorBoard's table HPARAMS, and close the event file."""
        last = result.eval or result.train
        if self._hyperparameters and last is not None:
            values = {f"hparams/{last.split}/{name}": x for name, x in last.metrics.items()}
            self._writer.add_hparams(
                self._hyperparameters, values, run_name=".", global_step=result.step
            )
        self._writer.close()
        self._writer = None
