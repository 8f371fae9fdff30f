"""Checkpoints of a run directory, and trained models that are teachers in knowledge distillation.

Read next: `trained.py`, which loads a run for its user.
"""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from ftrain import checkpoint as checkpoints
from ftrain.checkpoint import Store
from ftrain.checkpoint._numbered import identity
from ftrain.config.errors import ConfigError
from ftrain.config.folders import run_config, run_folder
from ftrain.config.schema import Config
from ftrain.data import fitted
from ftrain.loop._one_rank import ALONE, OneRank

__all__ = ["Loaded", "TrainedModel", "checkpoint_of", "loaded", "store", "trained_model"]


class Loaded(NamedTuple):
    """Content of a checkpoint.

    Attributes:
        path: the checkpoint that was read.
        state: the training state in the checkpoint.
        metadata: the metadata in the checkpoint.
    """

    path: pathlib.Path
    state: Any
    metadata: Any


class TrainedModel(NamedTuple):
    """Model of another run, with the weights of its best checkpoint.

    Attributes:
        model: the bound model.
        params: its parameters.
        buffers: its buffers.
    """

    model: Any
    params: Any
    buffers: Any


def trained_model(
    folder: pathlib.Path, build: Callable[..., Any], *, code: bool = True
) -> TrainedModel:
    """Return the model of a trained run, with the weights of its best checkpoint, on the CPU.

    Args:
        folder: the run's directory.
        build: `ftrain.config.build.build`, which calls this function.
        code: as in `load`.

    Raises:
        ConfigError: the directory is not a run, or has no checkpoint.
        CheckpointError: the checkpoint is damaged, or of another model.
    """
    folder = run_folder(folder)
    config = run_config(folder, ["device=cpu"], code=code)
    found = fitted.read(folder / fitted.FILE)
    parts = build(
        config,
        fitted={} if found is None else found.fitted,
        evaluation=True,
        facts=None if found is None else found.facts,
    )
    with warnings.catch_warnings():  # not trained further: no warning that bits may differ
        warnings.simplefilter("ignore", checkpoints.DeterminismWarning)
        path = checkpoint_of(config, folder, "best")
        state = loaded(config, folder, "best", path, parts.init_state()).state
    return TrainedModel(parts.model, state.params, state.buffers)


def store(config: Config, folder: pathlib.Path, ranks: OneRank = ALONE) -> Store:
    """Return the run's checkpoint store, with the configured rules for which checkpoints to keep.

    Args:
        config: the run's configuration.
        folder: the run's directory.
        ranks: the ranks that write; one process reads the checkpoints of any number.

    Raises:
        ConfigError: the path of the directory of checkpoints is a file.
    """
    options, place = config.checkpoint, folder / "checkpoints"
    if place.exists() and not place.is_dir():
        says = "expected a directory of checkpoints, got a file. Move the file away."
        raise ConfigError.at("", place, says)
    return ranks.store(
        place,
        keep_last=options.keep_last,
        keep_best=options.keep_best or None,
        metric=options.monitor,
        mode=options.mode,
        asynchronous=options.asynchronous,
        copy=config.compile,
        lock=options.lock,
    )


def checkpoint_of(config: Config, folder: pathlib.Path, which: str) -> pathlib.Path:
    """Return the path of a checkpoint of a run, given as `"best"`, `"latest"`, a name or a path.

    Raises:
        ConfigError: the checkpoint is missing.
    """
    kept = store(config, folder)
    if which not in ("best", "latest"):
        path = pathlib.Path(which)
        inside = folder / "checkpoints" / which
        path = inside if inside.is_dir() and not path.exists() else path
        if path.exists():
            return path
        there = sorted(each.name for each in inside.parent.glob("step-*"))
        remedy = (
            f"Choose one of {', '.join(['best', 'latest', *there])}."
            if there
            else f"It has none. Train it: `ftrain resume {folder}`."
        )
        message = (
            f"expected a checkpoint of {folder}, got {which!r}, which does not exist. {remedy}"
        )
        raise ConfigError.at("", f"--checkpoint {which}", message)
    found = (kept.best() if which == "best" else None) or kept.latest()
    if found is None:
        message = f"{folder} has no checkpoint. Train it: `ftrain resume {folder}`."
        raise ConfigError.at("", str(folder / "checkpoints"), message)
    return found


def loaded(
    config: Config, folder: pathlib.Path, which: str, path: pathlib.Path, like: Any
) -> Loaded:
    """Load a checkpoint of a run that another process may still be training.

    If the best or latest checkpoint is deleted before it is read, its successor as the best or latest is
    loaded.

    Args:
        config: the run's configuration.
        folder: the run's directory.
        which: `"best"`, `"latest"`, a name, or a path.
        path: the result of `checkpoint_of` for these arguments.
        like: a state of the same structure.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another model.
    """
    while True:
        before = identity(path)
        try:
            return Loaded(path, *checkpoints.load(path, like=like))
        except (checkpoints.CheckpointNotFoundError, checkpoints.CheckpointCorruptError):
            gone = before is None or identity(path) != before
            if which not in ("best", "latest") or not gone:
                raise
        path = checkpoint_of(config, folder, which)
