"""Loading of a `Config`; overrides `key.path=value` take precedence over the file.

    config = load("digits.yaml", ["epochs=3", "optimizer.learning_rate=1e-3"])

Read next: `dump.py`, the inverse; `build.py`, which builds a run from it.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ftrain.config._json import parse_json
from ftrain.config._key_errors import explained
from ftrain.config._limits import check_limits, check_text
from ftrain.config._overrides import apply_overrides
from ftrain.config._source_locations import Places
from ftrain.config._toml import parse_toml
from ftrain.config._yaml import parse_yaml
from ftrain.config.errors import ConfigError, Problem
from ftrain.config.schema import Config
from ftrain.core._regular_files import MOST_CONFIG, read_regular

__all__ = ["load", "parse"]

_FORMATS = {".yaml": parse_yaml, ".yml": parse_yaml, ".json": parse_json, ".toml": parse_toml}


def load(
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    code: bool = True,
) -> Config:
    """Return the configuration in a file (or a dict), with `overrides` applied.

    Args:
        source: a `.yaml`, `.yml`, `.json` or `.toml` file, or a dict of the same keys.
        overrides: `key.path=value`, the value in YAML: `epochs=3`, `model.widths=[64, 32]`,
            `callbacks.0.every=10`, `schedule=null`. A whole section may be set: `optimizer=sgd`.
        code: False: the configuration may use built-in names only, and `build`, `train` and others raise
            if it names code; for configurations of somebody else.

    Returns:
        The checked configuration, with the source location of each key.

    Raises:
        ConfigError: the file cannot be read or parsed; a key is unknown, is given twice, or has a value
            of another type; two keys contradict each other. The error lists all problems.

    Example:
        >>> config = load({"model": "linear", "data": "digits", "epochs": 3}, ["optimizer.name=sgd"])
        >>> config.epochs, config.optimizer.name, config.log_every
        (3, 'sgd', 50)
        >>> load({"model": "linear", "data": "digits", "epoch": 3})
        Traceback (most recent call last):
            ...
        ftrain.config.errors.ConfigError: the configuration: epoch: unknown key. ...
    """
    if isinstance(source, Mapping):
        found = _checked(dict(source), Places("the configuration"), overrides, None)
    else:
        path = pathlib.Path(source)
        found = parse(_read(path), path, overrides)
    found._builtin_only = not code
    return found


def parse(text: str, path: pathlib.Path, overrides: Sequence[str] = ()) -> Config:
    """Parse a configuration from a text; the suffix of `path` gives its format.

    Args:
        text: the content of the file.
        path: the path of the file, which messages name.
        overrides: as for `load`.

    Raises:
        ConfigError: as `load`.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError.at(
            "",
            path,
            f"expected a file name that ends in {', '.join(_FORMATS)}, got {path.name!r}. Rename "
            "the file.",
        )
    check_text(text, os.fspath(path))
    data, places = _FORMATS[path.suffix.lower()](text, os.fspath(path))
    if data is None:
        raise ConfigError.at(
            "", path, "expected a configuration, got an empty file. Write one with `ftrain init`."
        )
    if not isinstance(data, dict):
        raise ConfigError.at(
            "",
            path,
            f"expected keys with values, such as `epochs: 10`, got {_kind(data)}. Write one key a line.",
        )
    return _checked(data, places, overrides, path.parent)


def _read(path: pathlib.Path) -> str:
    try:
        return read_regular(path, MOST_CONFIG).decode("utf-8-sig")
    except FileNotFoundError:
        message = "file not found. Write one with `ftrain init`."
    except IsADirectoryError:
        message = "expected a file, got a directory. Name a file in it."
        if (path / "config.yaml").exists():
            message = f"expected a file, got a directory. Write {path / 'config.yaml'}."
    except UnicodeDecodeError as error:
        message = (
            f"expected text in UTF-8, got an invalid byte at {error.start}. Save the file as UTF-8."
        )
    except (OSError, ValueError) as error:
        message = f"cannot be read: {getattr(error, 'strerror', None) or error}. Name another file."
    raise ConfigError.at("", path, message)


def _checked(
    data: dict[str, Any],
    places: Places,
    overrides: Sequence[str],
    base: pathlib.Path | None,
) -> Config:
    check_limits(data, places.name)
    data = apply_overrides(data, places, overrides)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explained(error, places)) from None
    problems = [
        Problem(key, places.of(tuple(key.split("."))), message)
        for key, message in _contradictions(config)
    ]
    if problems:
        raise ConfigError(problems)
    config._places, config._base = places, base or pathlib.Path()
    return config


def _contradictions(config: Config) -> list[tuple[str, str]]:
    """Return `(key, message)` for each key whose value contradicts that of another key."""
    found = []
    if config.epochs is None and config.max_steps is None:
        found.append(
            (
                "epochs",
                "expected epochs or max_steps, got neither. Write `epochs: 10`, for instance.",
            )
        )
    if config.batch_size % config.accumulate:
        found.append(
            (
                "accumulate",
                f"expected a divisor of batch_size {config.batch_size}, got {config.accumulate}. Change "
                "one of them.",
            )
        )
    if config.loss is not None and config.task is not None:
        found.append(
            (
                "task",
                f"expected a task or a loss, got the task {config.task.name} and the loss "
                f"{config.loss.name}. Remove one of them, or write loss=null.",
            )
        )
    return found


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else repr(value)[:40]
