"""Logging of rows to Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from ftrain.loop.callback import Action
from ftrain.loop.callbacks._optional import need, refused
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
        project: name of the project; in a configuration, by default the run's name.
        config: the hyper-parameters; in a configuration, by default the whole configuration.
        **options: options of `wandb.init`: `name`, `id`, `mode="offline"`, `dir`, ...

    If the service refuses the run, for example because of a missing login, the logger emits one
    `Notice`, and the run continues without it.

    Raises:
        ImportError: wandb is not installed.

    Example:
        >>> callback = WandbLogger("digits", name="first", mode="offline")  # doctest: +SKIP
    """

    listens = (TrainBegin, Logged, TrainEnd)
    on_error = "warn"

    def __init__(
        self, project: str, *, config: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        self._wandb = need("wandb", "WandbLogger", "wandb")
        self.project = project
        given = {} if config is None else {"config": dict(config)}
        self._options = {"project": project, **given, **options}
        self._run: Any = None

    def init(self) -> WandbState:
        """Return the state before a Weights & Biases run is created: the `id` option, if given."""
        return {"id": self._options.get("id")}

    def __call__(self, state: WandbState, event: Event) -> tuple[WandbState, Iterable[Action]]:
        """Log a row to Weights & Biases; at the start of training, create or continue the run there."""
        if not is_main():
            return state, ()
        if isinstance(event, TrainBegin):
            how: dict[str, Any] = {}
            if event.resumed and state["id"]:
                how = {"id": state["id"], "resume": "allow"}
                if "config" in self._options:
                    how["allow_val_change"] = (
                        True  # a resumed run may have other values, such as more epochs
                    )
            try:
                self._run = self._wandb.init(**{**self._options, **how})
            except Exception as error:
                self._run = None
                remedy = "Log in with `wandb login`, or write mode='offline'."
                return state, refused("WandbLogger", error, remedy)
            return {"id": self._run.id}, ()
        if self._run is None:  # the service refused the run
            return state, ()
        if isinstance(event, Logged):
            row = {f"{event.split}/{name}": value for name, value in event.values.items()}
            self._run.log({**row, "epoch": event.progress.epoch}, step=event.progress.step)
        elif isinstance(event, TrainEnd):
            self._run.finish(exit_code=event.result.exit_code)
            self._run = None
        return state, ()
