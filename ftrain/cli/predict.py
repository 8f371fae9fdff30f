"""Predictions of a trained run for the rows of a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ftrain.config._loading import call_source
from ftrain.config.errors import ConfigError
from ftrain.config.registry import imported
from ftrain.config.trained import Trained
from ftrain.data.fitted import FILE
from ftrain.tasks import predictions

__all__ = ["predict"]


def predict(run: Trained) -> dict[str, list[Any]]:
    """Return columns of predictions for the rows of the table at `data.path`, in their order.

    The file needs no target column; an existing one is ignored.

    Raises:
        ConfigError: the run was not trained on a table; the rows cannot be read as its training data
            were; the model's outputs are neither logits of the classes nor one number a row.
    """
    config, target = run.config, run.parts.resolved.data

    def refusal(key: str, message: str) -> ConfigError:
        return ConfigError.at(key, config.places.of(tuple(key.split("."))), message)

    in_python = f'In Python, call ftrain.config.load_run("{run.folder}").predict(x)'
    inputs = target.needs.inputs
    if inputs is None:
        says = f"expected a table (data: csv), got {config.data.name}. {in_python}"
        raise refusal("data.name", says)
    if not run.fitted:
        raise refusal("data", f"expected {FILE} in {run.folder}, got none. Train the run again")
    if not config.places.typed(("data", "path")):
        raise refusal(
            "data.path",
            "expected a file of rows on the command line, got none. Write data.path=new.csv, for "
            "instance",
        )
    arguments = {**target.arguments, "fitted": run.fitted}
    x = call_source(config, target, imported(inputs), arguments)
    parts = [run.predict(part) for part in x.split(config.eval_batch_size or config.batch_size)]
    if not all(isinstance(part, Tensor) for part in parts):
        kind = type(parts[0]).__name__
        raise refusal("model", f"expected a tensor as output, got {kind}. {in_python}")
    binary = run.parts.resolved.objective.needs.max_classes == 2
    try:
        return predictions(torch.cat(parts), run.fitted["target"], binary=binary)
    except ValueError as error:
        raise refusal("model", f"{error}. {in_python}") from None
