"""Logging of rows to Weights & Biases."""

from __future__ import annotations

from typing import Any, TypedDict

from ftrain.loop.callback import Action
from ftrain.loop.callbacks._optional import need
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import Event, Logged, TrainBegin, TrainEnd

__all__ = ["WandbLogger", "WandbState"]


class WandbState(TypedDict):
    """State of `WandbLogger`: the Weights & Biases run to which it writes.

    Attributes:
        id: the id that the service assigned; `None` before the run is created.
    """

    id: str | None


class WandbLogger:
    """Log all metrics to Weights & Biases by step, as `train/loss` or `eval/loss`.

    A resumed run continues the same run of the service, whose id is in the checkpoint; the service
    ignores rows of steps that it already has. Checkpoints of two runs of the same steps are equal only
    if both are given the same `id`.

    Args:
        project: name of the project.
        **options: options of `wandb.init`: `name`, `id`, `config`, `mode="offline"`, `dir`, ...

    Raises:
        ImportError: wandb is not installed.

    Example:
        >>> callback = WandbLogger("digits", name="first", mode="offline")  # doctest: +SKIP
    """

    listens = (TrainBegin, Logged, TrainEnd)
    on_error = "warn"

    def __init__(self, project: str, **options: Any) -> None:
        self._wandb = need("wandb", "WandbLogger", "wandb")
        self.project = project
        self._options = {"project": project, **options}
        self._run: Any = None

    def init(self) -> WandbState:
        """Return the state before a Weights & Biases run is created: the `id` option, if given."""
        return {"id": self._options.get("id")}

    def __call__(self, state: WandbState, event: Event) -> tuple[WandbState, tuple[Action, ...]]:
        """Log the row to Weights & Biases."""
        if not is_main():
            return state, ()
        if isinstance(event, TrainBegin):
            how = {"id": state["id"], "resume": "allow"} if event.resumed and state["id"] else {}
            self._run = self._wandb.init(**{**self._options, **how})
            return {"id": self._run.id}, ()
        if isinstance(event, Logged):
            row = {f"{event.split}/{name}": value for name, value in event.values.items()}
            self._run.log({**row, "epoch": event.progress.epoch}, step=event.progress.step)
        elif isinstance(event, TrainEnd) and self._run is not None:
            self._run.finish(exit_code=event.result.exit_code)
            self._run = None
        return state, ()
