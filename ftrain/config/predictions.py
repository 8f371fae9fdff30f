"""Predictions of a run for the rows of a table, as class names or in the table's units.

Read next: `trained.py`, whose `predict` is called; `sources/table.py`, which reads the rows.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ftrain.config import losses, sources
from ftrain.config._made import made
from ftrain.config.errors import ConfigError
from ftrain.config.fitted import FILE
from ftrain.config.resolve import Target
from ftrain.config.trained import Trained
from ftrain.data.table import Table

__all__ = ["predictions"]


def predictions(run: Trained) -> dict[str, list[Any]]:
    """Return the predicted columns for the rows of `data.path`, in their order.

    The file needs no target column; an existing one is ignored.

    Returns:
        Of classes: under the target's name the names of the likeliest, and beside it a column `p(CLASS)`
        of probabilities for each. Of a number: under the target's name the number, in the table's units.

    Raises:
        ConfigError: the run has not learnt from a table; the rows cannot be read as the training data
            were; the model's outputs are neither logits of the classes nor one number a row.
    """
    config, target = run.config, run.parts.resolved.data
    place = config.places.of(("data",))
    if target.function is not sources.csv:
        raise ConfigError.at(
            "data.name",
            place,
            f"predict reads tables (data: csv), and this run's data is {config.data.name}. In Python: "
            f'ftrain.config.load_run("{run.folder}").predict(x)',
        )
    if not run.fitted:
        says = f"{run.folder} has no {FILE}, so how its table was read is not known: train it anew"
        raise ConfigError.at("data", place, says)
    if not config.places.typed(("data", "path")):
        says = "say which rows, on the command line: data.path=new.csv"
        raise ConfigError.at("data.path", config.places.of(("data", "path")), says)
    x = made(config, target, lambda: _features(target, run.fitted))
    size = config.eval_batch_size or config.batch_size
    parts = [run.predict(part) for part in x.split(size)]
    if not all(isinstance(part, Tensor) for part in parts):
        found = type(parts[0]).__name__
        raise ConfigError.at("model", config.places.of(("model",)), f"it gives no tensor: {found}")
    return _named(run, torch.cat(parts).double().cpu())


def _features(target: Target, fitted: Mapping[str, Any]) -> Tensor:
    """Return `x` as the model was trained on; the target column is replaced by a filler."""
    asked = inspect.signature(sources.csv).bind(**target.arguments)
    asked.apply_defaults()
    given, goal = asked.arguments, fitted["target"]
    whole = Table.read(given["path"], given["delimiter"], spelled=_spelled)
    kept = [place for place, name in enumerate(whole.names) if name != goal["name"]]
    filler = goal["classes"][0] if "classes" in goal else "0"
    rows = [(line, [*(row[place] for place in kept), filler]) for line, row in whole.rows]
    names = [*(whole.names[place] for place in kept), goal["name"]]
    read = dataclasses.replace(whole, names=names, rows=rows)
    found = sources.csv(**{**given, "path": read, "held_out": 0, "fitted": fitted})
    x: Tensor = found.train["x"]
    return x


def _named(run: Trained, outputs: Tensor) -> dict[str, list[Any]]:
    """Return the outputs in the table's terms."""
    goal, config = run.fitted["target"], run.config
    binary = run.parts.resolved.loss.function is losses.binary_cross_entropy
    name, classes = goal["name"], goal.get("classes", ["0", "1"] if binary else None)
    single = outputs.numel() == len(outputs)
    if classes is None and single:
        values = outputs.flatten() * goal.get("scale", 1.0) + goal.get("mean", 0.0)
        return {name: values.tolist()}
    if binary and single and len(classes) == 2:
        outputs = torch.stack([torch.zeros(len(outputs)), outputs.flatten()], dim=1)
    if classes is None or outputs.shape[1:] != (len(classes),):
        wanted = "one number a row" if classes is None else f"logits of {len(classes)} classes"
        raise ConfigError.at(
            "model",
            config.places.of(("model",)),
            f"predict wants {wanted}, and the model gives {tuple(outputs.shape[1:])} a row. In Python: "
            f'ftrain.config.load_run("{run.folder}").predict(x)',
        )
    columns = [f"p({one})" for one in classes]
    shares = outputs.softmax(1).T.tolist()
    likeliest = [classes[place] for place in outputs.argmax(1).tolist()]
    return {name: likeliest, **dict(zip(columns, shares, strict=True))}


def _spelled(name: str, value: str) -> str:
    """Return an argument as a configuration writes it."""
    return f"data.{name}: {value}"
