"""Command-line overrides `key.path=value`, applied to the content of a configuration file."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from ftrain.config._limits import DEEPEST, check_limits, too_large
from ftrain.config._source_locations import Path, Places, join
from ftrain.config._yaml import parse_yaml
from ftrain.config.errors import ConfigError

__all__ = ["apply_overrides"]


def apply_overrides(
    data: dict[str, Any], places: Places, overrides: Sequence[str]
) -> dict[str, Any]:
    """Return the content of a file with overrides applied, and with missing sections and lists added."""
    for override in overrides:
        path, value = _parsed(override)
        data = _put(data, path, value, (), f"the command line ({override[:200]})")
        for known in [*places.lines, *places.overrides]:
            if known[: len(path)] == path:  # the previous value is replaced
                places.lines.pop(known, None)
                places.overrides.pop(known, None)
        places.overrides[path] = override if len(override) <= 200 else override[:197] + "..."
    return data


def _parsed(override: str) -> tuple[Path, Any]:
    shown = override if len(override) <= 200 else override[:197] + "..."
    place = f"the command line ({shown})"
    if not override.isascii() and any("\ud800" <= c <= "\udfff" for c in override):
        says = f"expected text in UTF-8, got {shown!a}. Rename the file or directory."
        raise ConfigError.at("", "the command line", says)
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        no_key = not equals and _is_data(text or override)
        raise ConfigError.at(
            "",
            place,
            f"expected key=value, such as optimizer.learning_rate=1e-3, got {shown!r}. "
            + (f"Write data.path={shown}." if no_key else "Write a key and its value."),
        )
    if len(keys) > DEEPEST:
        raise too_large(tuple(keys), place)
    try:
        value, _ = parse_yaml(text, place)
    except ConfigError as error:
        why = error.problems[0].message
        raise ConfigError.at(
            key, place, f"{why} If the value is a text, quote it: `{key}='\"...\"'`."
        ) from None
    path = tuple(int(part) if part.isdecimal() and len(part) < 10 else part for part in keys)
    check_limits(value, place, path)
    return path, value


def _is_data(name: str) -> bool:
    """Return True if an argument is the name of a file or folder of data, not of a configuration."""
    suffix = pathlib.PurePath(name).suffix.lower()
    known = (".csv", ".tsv", ".txt", ".npz", ".safetensors", ".png", ".jpg", ".jpeg")
    return suffix in known or (
        suffix not in (".yaml", ".yml", ".json", ".toml") and os.path.exists(name)
    )


def _put(parent: Any, path: Path, value: Any, done: Path, place: str) -> Any:
    """Return a copy of `parent` with `value` set at `path` in it; `done` is the path of `parent`."""
    if not path:
        return value
    key, here = path[0], (*done, path[0])
    if parent is None:
        parent = [] if isinstance(key, int) else {}
    elif isinstance(parent, str):
        parent = {"name": parent}  # the short form of a component
    if isinstance(parent, dict):
        name = str(key)  # a number is a key unless the value is a list
        return {**parent, name: _put(parent.get(name), path[1:], value, here, place)}
    if not isinstance(parent, list):
        raise ConfigError.at(
            join((*done, *path)),
            place,
            f"expected {join(done)} to be a section of keys, got {parent!r}. Write `{join(done)}=...`.",
        )
    if not isinstance(key, int) or key > len(parent):
        raise ConfigError.at(
            join(here),
            place,
            f"expected an index of the list {join(done)}, from 0 to {len(parent)}, got {key!r}. "
            f"Write `{join(done)}.0`.",
        )
    below = parent[key] if key < len(parent) else None
    return [*parent[:key], _put(below, path[1:], value, here, place), *parent[key + 1 :]]
