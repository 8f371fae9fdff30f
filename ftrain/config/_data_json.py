"""Fitted preprocessing in a run's `data.json`, and its comparison with that of the current data.

Read next: `ftrain/data/fitted.py`, which reads and writes the file.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from ftrain.config.build import Parts
from ftrain.config.errors import ConfigError
from ftrain.config.schema import Config
from ftrain.core._words import one_line
from ftrain.core.errors import DataError
from ftrain.data import fitted

__all__ = ["check_unchanged", "content", "missing_warning", "stored"]

#: Largest number of differences that an error message lists.
_LISTED = 6


def content(parts: Parts) -> str | None:
    """Return the text to write to `data.json`; `None` for data without fitted preprocessing."""
    if parts.fitted is None:
        return None
    return fitted.to_json(fitted.Stored(_source(parts.config), parts.fitted, parts.facts))


def stored(config: Config, folder: pathlib.Path) -> fitted.Stored:
    """Read a run's `data.json`; if the file is missing, return a record without preprocessing.

    Raises:
        ConfigError: the file is damaged, or was written for another data function.
    """
    path = folder / fitted.FILE
    try:
        found = fitted.read(path)
    except DataError as error:
        raise ConfigError.at("", "", str(error)) from None  # the message names the file
    source = _source(config)
    if found is None:
        return fitted.Stored(source, {}, None)
    if found.source != source:
        raise ConfigError.at(
            "data.name",
            config.places.of(("data", "name")),
            f"expected {one_line(found.source)}, the data function whose fitted preprocessing "
            f"{path} stores, got {config.data.name}. Begin a new run.",
        )
    return found


def missing_warning(
    parts: Parts, folder: pathlib.Path, expected: Mapping[str, Any] | None
) -> str | None:
    """Return a warning if a run whose data need preprocessing has no `data.json`; else `None`."""
    if expected is None or expected or parts.fitted is None:
        return None
    return (
        f"{folder} has no {fitted.FILE}, so preprocessing (scales, classes, alphabet) is fitted on the "
        "current data, and a numeric target is not standardized. If the file is lost, restore it."
    )


def check_unchanged(parts: Parts, expected: Mapping[str, Any], remedy: str) -> None:
    """Raise if preprocessing fitted on the current data differs from `expected`, stored by the run.

    Raises:
        ConfigError: the preprocessing differs; the message lists the differences.
    """
    if not expected or parts.fitted is None:
        return
    found = list(fitted.differences(expected, parts.fitted))
    if found:
        config = parts.config
        more = [f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
        lines = "\n  ".join(["", *found[:_LISTED], *more])
        says = f"the training data have changed since the run fitted its preprocessing:{lines}\n{remedy}"
        raise ConfigError.at("data", config.places.of(("data",)), says)


def _source(config: Config) -> str:
    """Return the name of the data function, without its file or module."""
    return config.data.name.rpartition(":")[2]
