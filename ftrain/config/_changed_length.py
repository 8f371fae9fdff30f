"""Learning-rate schedule of a resumed run whose number of steps has changed."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import torch

from ftrain.checkpoint import CheckpointError, Store
from ftrain.checkpoint._read import open_checkpoint
from ftrain.config._optimizer import schedule_of, schedule_steps, total_steps
from ftrain.config.build import Parts
from ftrain.config.errors import ConfigError
from ftrain.config.folders import run_config
from ftrain.config.schema import Config
from ftrain.data import Cursor, Loader

__all__ = ["schedule_note"]


def schedule_note(parts: Parts, folder: pathlib.Path, store: Store) -> str | None:
    """Return a note if a resumed run's learning rate jumps because its length changed; else `None`.

    Args:
        parts: the resumed run.
        folder: its directory, which holds the earlier configuration.
        store: its checkpoints.

    Raises:
        ConfigError: the batch size has changed, so that the run would not end with its schedule.
    """
    _check_length(parts, folder, store)
    steps, now, course = store.steps(), parts.total_steps, parts.resolved.schedule
    if parts.schedule is None or course is None or now is None or not steps:
        return None
    try:
        config = run_config(folder)
        before = total_steps(config, _earlier_batches(parts, config.batch_size))
        if before is None or before == now or _name(config) != _name(parts.config):
            return None
        earlier = schedule_of(parts.resolved, before, False)
    except ValueError:  # the earlier file is damaged, or its length does not fit the schedule
        return None
    step = torch.tensor(steps[-1])
    old, new = (float(schedule(step)) for schedule in (earlier, parts.schedule))
    if old == new:
        return None
    longer = "stretched" if now > before else "compressed"
    return (
        f"the schedule {course.component.name} is {longer} from {before} to {now} steps: the learning "
        f"rate after step {steps[-1]} is {new:.4g}, not {old:.4g}. The result is not that of a run of "
        f"{now} steps from the start."
    )


def _check_length(parts: Parts, folder: pathlib.Path, store: Store) -> None:
    """Raise if another batch size moves the end of a resumed run from the end of its schedule.

    The epochs before the checkpoint and those after it have different numbers of steps then, so the run
    does not end after `epochs` times the steps of an epoch.
    """
    config, train, path = parts.config, parts.train, store.latest()
    if path is None or config.epochs is None or not _sized_by(config, train):
        return
    try:
        earlier = run_config(folder).batch_size
        with open_checkpoint(path) as opened:
            metadata = opened.manifest.metadata
        step, cursor = metadata["progress"]["step"], Cursor.from_json(metadata["data"])
    except (ConfigError, CheckpointError, KeyError, TypeError, ValueError):
        return  # the earlier file is damaged; the checkpoint is refused when it is loaded
    if earlier == config.batch_size:
        return
    # Steps of a run of the present batch size up to the same sample.
    same = (cursor.epoch + 1) * len(train) - train._remaining(cursor.position)
    place = config.places.of(("batch_size",))
    changed = f"got {config.batch_size} after step {step}. "
    if config.epochs != int(config.epochs):
        raise ConfigError.at(
            "batch_size",
            place,
            f"expected {earlier}, the earlier value, because epochs={config.epochs} is fractional, "
            f"{changed}Write a whole number of epochs, or max_steps alone.",
        )
    end, course = step + int(config.epochs) * len(train) - same, parts.resolved.schedule
    end = end if config.max_steps is None else min(end, config.max_steps)
    if parts.schedule is None or course is None or end == parts.total_steps:
        return
    found = schedule_steps(config, course, end)
    if found:
        written = " ".join(f"schedule.{name}={value}" for name, value in found.items())
        raise ConfigError.at(
            "batch_size",
            place,
            f"expected {earlier}, the earlier value, because the schedule {course.component.name} spans "
            f"the whole run, {changed}With this batch size, the run ends at step {end}. Write "
            f"{written}, or other numbers of steps.",
        )


def _name(config: Config) -> str | None:
    """Return the name of the configured schedule; `None` for a constant learning rate."""
    return None if config.schedule is None else config.schedule.name


def _sized_by(config: Config, train: Any) -> bool:
    """Return True if the training data are a loader with the configuration's batch size."""
    return isinstance(train, Loader) and train.batch_size == config.batch_size


def _earlier_batches(parts: Parts, batch_size: int) -> Any:
    """Return the training data in batches of an earlier size; a ValueError if they do not fit it."""
    if not _sized_by(parts.config, parts.train):
        return parts.train
    return dataclasses.replace(parts.train, batch_size=batch_size)
