"""Evaluation of a run's checkpoint on its held-out data, or on other data in the same format."""

from __future__ import annotations

import dataclasses
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

from ftrain.config import _data_json
from ftrain.config._checkpoints import checkpoint_of, loaded
from ftrain.config._environment import environment
from ftrain.config.build import Parts, build
from ftrain.config.errors import ConfigError
from ftrain.config.schema import Config
from ftrain.loop import EpochResult, LoopWarning
from ftrain.loop.callbacks.ema import averaged
from ftrain.loop.state import LoopState

__all__ = ["evaluate"]


def evaluate(
    config: Config, folder: pathlib.Path, which: str = "best"
) -> tuple[pathlib.Path, list[EpochResult]]:
    """Evaluate a run; return the chosen checkpoint and its metrics over the held-out data.

    The first result is that of the weights; with `ema` in the configuration, the second one is that of
    the averaged weights, with the split `eval/ema`. If `data.path` was given on the command line, all
    samples of that file are evaluated, with the scales, classes or alphabet that the run has fitted on
    its training data.

    Args:
        config: the configuration of the run.
        folder: the directory of the run.
        which: `"best"`, `"latest"`, or the path of a checkpoint.

    Raises:
        ConfigError: the checkpoint is missing, or no data are held out; the training data have changed,
            so that the held-out samples may have been trained on; the given data cannot be read in the
            same way as the training data.
        CheckpointError: the checkpoint is damaged, or of another model.
    """
    path = checkpoint_of(config, folder, which)
    with environment(config):
        stored_fitted = _data_json.stored(config, folder).fitted
        parts = build(config, fitted=stored_fitted, evaluation=True)
        _check(parts, folder, stored_fitted)
        if parts.held_out is None:
            message = (
                f"expected held-out data, got none from {config.data.name}. Write "
                "data.held_out=0.2."
            )
            raise ConfigError.at("data", config.places.of(("data",)), message)
        path, state, metadata = loaded(config, folder, which, path, parts.init_state())
        # Not compiled, because compilation takes longer than one eager pass.
        trainer = parts.trainer(compile=False)
        found = [trainer.evaluate(state, parts.held_out)]
        if config.ema is not None:
            average = trainer.evaluate(averaged(state, "ema"), parts.held_out)
            found.append(dataclasses.replace(average, split="eval/ema"))
        epoch = _epoch(state, metadata, found[0].step)
        return path, [dataclasses.replace(result, epoch=epoch) for result in found]


def _check(parts: Parts, folder: pathlib.Path, stored_fitted: Mapping[str, Any]) -> None:
    """Raise if the data changed since training: held-out samples may then have been trained on."""
    config = parts.config
    typed = config.places.typed(("data", "path"))
    if (says := _data_json.missing_warning(parts, folder, stored_fitted)) is not None:
        warnings.warn(says, LoopWarning, stacklevel=2)
    if not typed and not isinstance(config.data.held_out, str):
        remedy = "Restore the earlier file, or evaluate on all samples of a file: data.path=FILE."
        _data_json.check_unchanged(parts, stored_fitted, remedy)


def _epoch(state: Any, metadata: Any, step: int) -> int:
    """Return the epoch in which a checkpoint was saved; 0 if it was not saved by a `Trainer`."""
    try:
        saved = LoopState.from_metadata(state, metadata)
    except ValueError:
        return 0
    return next((e.epoch for e in reversed(saved.history) if e.step == step), saved.progress.epoch)
