"""Predictions of a trained run for rows of a table, images, arrays, or the characters of a text."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ftrain.config._loading import call_source
from ftrain.config.errors import ConfigError
from ftrain.config.registry import imported
from ftrain.config.trained import Trained
from ftrain.core._words import a_or_an
from ftrain.data.fitted import FILE
from ftrain.data.sources import Inputs
from ftrain.tasks import find_output, predictions

__all__ = ["predict"]


def predict(run: Trained) -> dict[str, list[Any]]:
    """Return a run's predictions for the samples at `data.path` as columns, in the order of the samples.

    The file needs no targets; targets in the file are ignored.

    Raises:
        ConfigError: the run was not trained on a table, images, arrays or a text; the samples cannot be
            read like its training data; the model's outputs are neither logits of the classes nor
            numbers.
    """
    config = run.config
    in_python = f'In Python, call ftrain.config.load_run("{run.folder}").predict(x).'
    inputs = _inputs(run, in_python)
    alphabet = inputs.target.get("alphabet")
    parts = []
    for batch in inputs.batches(config.eval_batch_size or config.batch_size):
        outputs = run.predict(batch)
        try:
            outputs = find_output(outputs)
        except (KeyError, TypeError):
            says = (
                f"expected a tensor as output, got {a_or_an(type(outputs).__name__)}. {in_python}"
            )
            raise _refusal(run, "model", says) from None
        if alphabet is not None:
            if outputs.ndim != 3:
                says = (
                    "expected logits (n, length, vocabulary) as output, got shape "
                    f"{tuple(outputs.shape)}. Return the logits of every position. {in_python}"
                )
                raise _refusal(run, "model", says)
            outputs = _likeliest(outputs)
        parts.append(outputs)
    if not parts:
        says = "expected samples, got a file without samples. Add samples to the file."
        raise _refusal(run, "data.path", says)
    try:
        found = torch.cat(parts)
        if alphabet is not None:
            columns = _characters(found, alphabet)
        elif inputs.target.get("numbers") and found.numel() != len(found):
            name, values = inputs.target["name"], found.flatten(1).double().cpu()
            columns = {f"{name}.{i}": values[:, i].tolist() for i in range(values.shape[1])}
        else:
            binary = run.parts.resolved.objective.needs.max_classes == 2
            columns = predictions(found, _target(inputs.target, found), binary=binary)
    except ValueError as error:
        raise _refusal(run, "model", f"{str(error).removesuffix('.')}. {in_python}") from None
    return {**{name: list(values) for name, values in inputs.columns.items()}, **columns}


def _inputs(run: Trained, in_python: str) -> Inputs:
    """Read the samples at `data.path` in the same way as the run's training data, without targets."""
    config, target = run.config, run.parts.resolved.data
    function = target.needs.inputs
    if function is None:
        says = f"expected data of a file (csv, images, arrays or text), got {config.data.name}"
        raise _refusal(run, "data.name", f"{says}. {in_python}")
    if not run.fitted:
        says = f"expected {FILE} in {run.folder}, got none. Train the run again, which writes it."
        raise _refusal(run, "data", says)
    if not config.places.typed(("data", "path")):
        path = pathlib.PurePath(str(config.data.arguments.get("path", "")))
        example = "FILE" if path.suffix else "FOLDER"
        says = (
            "expected the file of the samples on the command line, got none. Write "
            f"data.path={example}."
        )
        raise _refusal(run, "data.path", says)
    arguments = {**target.arguments, "fitted": run.fitted}
    found = call_source(config, target, imported(function), arguments)
    if isinstance(found, Tensor):
        rows: Tensor = found
        return Inputs(lambda size: iter(torch.split(rows, size)), run.fitted["target"])
    if not isinstance(found, Inputs):
        says = (
            f"expected a tensor or ftrain.data.sources.Inputs from the `inputs` of {config.data.name}, "
            f"got {a_or_an(type(found).__name__)}. Return one of these."
        )
        raise _refusal(run, "data", says)
    return found


def _target(target: Mapping[str, Any], outputs: Tensor) -> Mapping[str, Any]:
    """Return the description of the target; name its classes `0`, `1`, ... if they have no names."""
    several = outputs.ndim == 2 and outputs.shape[1] > 1
    if "classes" in target or "numbers" not in target or target["numbers"] or not several:
        return target
    return {**target, "classes": [str(number) for number in range(outputs.shape[1])]}


def _likeliest(logits: Tensor) -> Tensor:
    """Return each position's most likely token and its probability, as float64 `(n * length, 2)`."""
    shares, places = logits.double().softmax(2).max(2)
    return torch.stack([places.double(), shares], dim=2).flatten(0, 1)


def _characters(found: Tensor, alphabet: str) -> dict[str, list[Any]]:
    tokens, shares = found.cpu().T
    return {
        "predicted": [alphabet[int(token)] for token in tokens.tolist()],
        "p(predicted)": shares.tolist(),
    }


def _refusal(run: Trained, key: str, message: str) -> ConfigError:
    return ConfigError.at(key, run.config.places.of(tuple(key.split("."))), message)
