"""Loading of the data that a configuration names, as batches of training and of held-out samples.

Read next: `ftrain/data/sources/`, the functions; `_data_json.py`, which stores what they fit.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import torch

from ftrain import data as loading
from ftrain.config._component_errors import made
from ftrain.config._ranks import row_ranks
from ftrain.config._text_columns import without_texts
from ftrain.config.errors import ConfigError
from ftrain.config.resolve import Resolved, Target
from ftrain.config.schema import Config
from ftrain.core._words import a_or_an
from ftrain.core.errors import ArgumentError
from ftrain.data.sources import Data

__all__ = ["call_source", "load_data", "loaders"]

#: Number of batches on which a `fast_dev_run` evaluates.
DEV_EVAL_BATCHES = 2


def load_data(resolved: Resolved, fitted: Mapping[str, Any] | None, evaluation: bool) -> Data:
    """Call the configured data function; return its data, with samples held out for evaluation.

    Args:
        resolved: the components that the configuration names.
        fitted: the run's fitted preprocessing; passed to functions that have an argument of this name.
        evaluation: True: hold out all data that `data.path` names on the command line.
    """
    config, target = resolved.config, resolved.data
    arguments = dict(target.arguments)
    if target.takes("fitted"):
        arguments["fitted"] = fitted
    elsewhere = evaluation and ("data", "path") in config.places.overrides
    elsewhere = elsewhere and ("data", "held_out") not in config.places.overrides
    if evaluation and (fitted or not target.takes("fitted")):
        arguments |= _only_held_out(target, elsewhere)
    found = _as_data(config, call_source(config, target, target.function, arguments))
    if elsewhere and found.held_out is None:
        return found._replace(held_out=found.train)
    held_out, place = config.data.held_out, config.places.of(("data", "held_out"))
    if held_out is None or target.takes("held_out"):
        return found
    if held_out == 0:
        return found._replace(held_out=None)
    if found.held_out is not None:
        message = (
            f"expected no value, because {config.data.name} returns held-out data. Remove held_out."
        )
        raise ConfigError.at("data.held_out", place, message)
    try:
        train, rest = loading.split(found.train, held_out)  # type: ignore[arg-type]  # not a path: `resolve` refused it
        return found._replace(train=train, held_out=rest)
    except (TypeError, ValueError) as error:
        raise ConfigError.at("data.held_out", place, str(error)) from None


def call_source(config: Config, target: Target, function: Any, arguments: Mapping[str, Any]) -> Any:
    """Call a function that reads the run's data; convert its errors to `ConfigError`s.

    Raises:
        ConfigError: the function raised. The message names the key, and `data.json` if a built-in
            function cannot read the preprocessing stored there.
    """
    built_in = ":" not in config.data.name

    def call() -> Any:
        try:
            return function(**arguments)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            if not arguments.get("fitted") or not built_in:
                raise
            # A built-in function reads its own output here, so the error means that the file is damaged.
            says = (
                f"data.json in the run's directory is damaged ({type(error).__name__}: {error}). "
                "Restore the original file, or begin a new run."
            )
            raise ConfigError.at("data", config.places.of(("data",)), says) from None

    return made(config, target, call)


def _only_held_out(target: Target, elsewhere: bool) -> dict[str, Any]:
    """Return the arguments that make the data function read only held-out data; `{}` if it cannot."""
    if "path" not in target.arguments or not target.takes_file("held_out"):
        return {}
    if elsewhere:
        return {"held_out": target.arguments["path"]}
    apart = isinstance(target.arguments.get("held_out"), pathlib.Path) and target.takes("fitted")
    return {"path": target.arguments["held_out"]} if apart else {}


def _as_data(config: Config, made: Any) -> Data:
    place = config.places.of(("data",))
    pair = type(made) is tuple and len(made) == 2
    if pair and all(isinstance(part, torch.Tensor) for part in made):
        raise ConfigError.at(
            "data",
            place,
            f"expected a dict, a dataset, or a pair `(training, held_out)` of these from "
            f"{config.data.name}, got two tensors. "
            'Return {"x": inputs, "y": targets}, or a pair of such dicts.',
        )
    found: Data = made if isinstance(made, Data) else Data(*made) if pair else Data(made)
    if found.fitted is None:
        return found
    try:  # converted to what a resumed run will read
        return found._replace(fitted=json.loads(json.dumps(dict(found.fitted), allow_nan=False)))
    except (TypeError, ValueError) as error:
        says = (
            f"expected Data.fitted of {config.data.name} to hold JSON values (dicts, lists, strings, "
            f"finite numbers), got another value: {error}. Convert the value."
        )
        raise ConfigError.at("data", place, says) from None


def loaders(
    config: Config, found: Data, device: torch.device, evaluation: bool, mesh: Any = None
) -> tuple[Any, Any]:
    """Return loaders of training and of held-out batches; `None` for data that the run does not use."""
    place = device if device.type != "cpu" else None
    seed = config.seed if config.data_seed is None else config.data_seed
    compiled = config.compile and not config.detect_anomaly and not evaluation
    rank, ranks = row_ranks(config, mesh)

    def batches(dataset: Any, training: bool) -> Any:
        if training and ranks > 1 and not hasattr(dataset, "__getitem__"):
            got = a_or_an(type(dataset).__name__)
            raise TypeError(
                f"{config.data.name}: expected data with `len(data)` and `data[i]`, which {ranks} ranks "
                f"can divide, got {got}. Return a dict of tensors or a dataset."
            )
        if isinstance(dataset, (loading.Loader, loading.Stream)):
            return dataset
        size = config.batch_size if training else config.eval_batch_size or config.batch_size
        if hasattr(dataset, "__iter__") and not hasattr(dataset, "__getitem__"):
            return loading.Stream(dataset, size, seed=seed, device=place)
        return loading.Loader(
            without_texts(dataset) if compiled else dataset,
            size,
            seed=seed,
            shuffle=training,
            workers=config.workers,
            device=place,
            rank=rank if training else 0,  # ranks evaluate whole batches in turn
            ranks=ranks if training else 1,
        )

    def checked(dataset: Any, training: bool) -> Any:
        try:
            return batches(dataset, training)
        except (TypeError, ValueError) as error:
            key, says = "data", str(error)
            if isinstance(error, ArgumentError) and error.argument == "batch_size":
                own = config.eval_batch_size is not None and not training
                key = "eval_batch_size" if own else "batch_size"
                # Not the error's remedy, which names arguments of `Loader` that no key sets.
                says = f"{error.problem}. Change {key}."
            raise ConfigError.at(key, config.places.of((key,)), says) from None

    trains = not evaluation or config.overfit_batches
    train = checked(found.train, True) if trains else None
    held_out = None if found.held_out is None else checked(found.held_out, False)
    if config.overfit_batches:
        train = _first(train, config.overfit_batches)
        held_out = train
    elif config.fast_dev_run and held_out is not None:
        held_out = _first(held_out, DEV_EVAL_BATCHES)
    return train, held_out


def _first(batches: Any, n: int) -> list[Any]:
    """Return the first n batches of the first epoch as a list, to repeat in each epoch."""
    pairs = batches.batches(epochs=1)
    return [batch for (batch, _), _ in zip(pairs, range(n), strict=False)]
