"""Logging of rows to MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from ftrain.loop.callback import Action
from ftrain.loop.callbacks._optional import flattened, need, refused
from ftrain.loop.callbacks._rank import is_main
from ftrain.loop.events import Event, Logged, TrainBegin, TrainEnd

__all__ = ["MLflowLogger", "MLflowState"]

_STATUS = {"failed": "FAILED", "interrupted": "KILLED"}


class MLflowState(TypedDict):
    """State of `MLflowLogger`: the MLflow run to which it writes.

    Attributes:
        run_id: the id that MLflow assigned; `None` before the run is created.
    """

    run_id: str | None


class MLflowLogger:
    """Log all metrics to MLflow by step, as `train/loss` or `eval/loss`.

    A resumed run continues the same MLflow run, whose id is in the checkpoint. MLflow does not delete
    values: those of repeated steps appear twice, and are equal.

    Args:
        experiment: name of the experiment; in a configuration, by default the run's name.
        tracking_uri: URI of the server or database, `sqlite:///mlflow.db`; default: MLflow's default.
        hyperparameters: logged as MLflow's params when the run begins; in a configuration, by default
            the whole configuration.
        **options: options of `mlflow.start_run`: `run_name`, `tags`, ...

    Raises:
        ImportError: mlflow is not installed.

    Example:
        >>> callback = MLflowLogger("digits", run_name="first")  # doctest: +SKIP
    """

    listens = (TrainBegin, Logged, TrainEnd)
    on_error = "warn"

    def __init__(
        self,
        experiment: str,
        *,
        tracking_uri: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._mlflow = need("mlflow", "MLflowLogger", "mlflow")
        self.experiment, self._uri, self._options = experiment, tracking_uri, options
        self._hyperparameters = flattened(hyperparameters or {})
        self._begun = False

    def init(self) -> MLflowState:
        """Return the state before an MLflow run is created."""
        return {"run_id": None}

    def __call__(self, state: MLflowState, event: Event) -> tuple[MLflowState, Iterable[Action]]:
        """Log a row of the log to MLflow; begin and end the MLflow run with the training run."""
        if not is_main():
            return state, ()
        if isinstance(event, TrainBegin):
            run_id = state["run_id"] if event.resumed else None
            try:
                run = self._begin(run_id)
            except Exception as error:
                self._begun = False
                remedy = "Check tracking_uri and its server."
                return state, refused("MLflowLogger", error, remedy)
            self._begun = True
            return {"run_id": run.info.run_id}, ()
        if not self._begun:  # else MLflow would start another run for the values
            return state, ()
        if isinstance(event, Logged):
            row = {f"{event.split}/{name}": value for name, value in event.values.items()}
            self._mlflow.log_metrics(row, step=event.progress.step)
        elif isinstance(event, TrainEnd):
            self._mlflow.end_run(_STATUS.get(event.result.status, "FINISHED"))
        return state, ()

    def _begin(self, run_id: str | None) -> Any:
        if self._uri is not None:
            self._mlflow.set_tracking_uri(self._uri)
        self._mlflow.set_experiment(self.experiment)
        run = self._mlflow.start_run(run_id=run_id, **self._options)
        if run_id is None and self._hyperparameters:  # an existing run's params cannot change
            self._mlflow.log_params(self._hyperparameters)
        return run
