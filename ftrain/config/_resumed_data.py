"""Checks that a resumed run has the seeds and the data of its checkpoint."""

from __future__ import annotations

import pathlib

from ftrain.config.build import Parts
from ftrain.config.errors import ConfigError
from ftrain.config.folders import run_config
from ftrain.config.schema import Config
from ftrain.core.errors import ArgumentError
from ftrain.data import Stream

__all__ = ["check_seeds", "other_data"]

_ANEW = "begin another run: `ftrain train {0}/config.yaml {1}={2} output_dir={0}-2`."


def check_seeds(config: Config, folder: pathlib.Path) -> None:
    """Raise if the seeds of a run that has a checkpoint have changed: the checkpoint replaces both.

    It holds the random key and the order of the data, so the new seeds would have no effect, and
    `config.yaml` would name seeds that the run does not have.
    """
    try:
        earlier = run_config(folder)
    except ConfigError:  # missing or damaged, and about to be replaced
        return
    for key, was, now in (
        ("seed", earlier.seed, config.seed),
        ("data_seed", _data_seed(earlier), _data_seed(config)),
    ):
        if was != now:
            raise ConfigError.at(
                key,
                config.places.of((key,)),
                f"expected {was}, because the checkpoint of {config.folder} holds the random key and "
                f"the order of the data, got {now}. Write {key}={was}, or "
                + _ANEW.format(config.folder, key, now),
            )


def other_data(parts: Parts, folder: pathlib.Path, error: ArgumentError) -> ConfigError:
    """Return the refusal of data other than those of the checkpoint, by the key that changes them."""
    config, train = parts.config, parts.train
    earlier = run_config(folder)
    own_size = isinstance(train, Stream) and train.batch_size == config.batch_size
    if own_size and earlier.batch_size != config.batch_size:
        return ConfigError.at(
            "batch_size",
            config.places.of(("batch_size",)),
            f"expected {earlier.batch_size}, because the checkpoint counts batches of iterable data, "
            f"got {config.batch_size}. Write batch_size={earlier.batch_size}, or "
            + _ANEW.format(config.folder, "batch_size", config.batch_size),
        )
    return ConfigError.at(
        "data",
        config.places.of(("data",)),
        f"{error.problem}. Restore the earlier data, or begin another run: `ftrain train "
        f"{config.folder}/config.yaml ... output_dir={config.folder}-2`.",
    )


def _data_seed(config: Config) -> int:
    return config.seed if config.data_seed is None else config.data_seed
