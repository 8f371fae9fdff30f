"""TOML with the line of every key. `tomllib` validates it; this module finds the lines."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ftrain.config._places import Path, Places, join
from ftrain.config.errors import ConfigError

__all__ = ["parse_toml"]


def parse_toml(text: str, name: str) -> tuple[Any, Places]:
    """Return the document, and the line of each of its keys."""
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, where = str(error).partition(" (at line ")
        line = where.split(",")[0]
        place = f"{name}:{line}" if line.isdecimal() else name
        raise ConfigError.at("", place, f"this is no TOML: {message}") from None
    except RecursionError:
        raise ConfigError.at("", name, "this is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError.at("", name, f"this is no TOML: {error}") from None
    places = _places(text.splitlines(), name)
    for path, value in _leaves(parsed):
        if not isinstance(value, (str, int, float)):
            message = (
                f"a {type(value).__name__} is not used here; put it in quotes to make it a text"
            )
            raise ConfigError.at(join(path), places.of(path), message)
    return parsed, places


def _places(lines: list[str], name: str) -> Places:
    """Return the line of each key; a statement ends with the first line at which it parses alone."""
    places = Places(name, {(): 1})
    table: Path = ()
    entered: Counter[Path] = Counter()
    at = 0
    while at < len(lines):
        begin, statement, parsed = at, "", None
        while parsed is None and at < len(lines):
            statement += lines[at] + "\n"
            at += 1
            parsed = _parsed(statement)
        if (
            parsed is None
        ):  # it stands for more than its lines: leave the rest to the parents' places
            at = begin + 1
            continue
        if statement.lstrip().startswith("["):
            table = _entered(_only_path(parsed), statement.lstrip().startswith("[["), entered)
            places.lines.setdefault(table, begin + 1)
        else:
            for path in _paths(parsed):
                places.lines.setdefault((*table, *path), begin + 1)
    return places


def _parsed(statement: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(statement)
    except (ValueError, RecursionError):
        return None


def _only_path(parsed: Any) -> tuple[str, ...]:
    """Return the keys of a header, from the table that it makes when parsed alone."""
    path: tuple[str, ...] = ()
    while isinstance(parsed, (dict, list)) and parsed:
        if isinstance(parsed, list):
            parsed = parsed[0]
            continue
        key, parsed = next(iter(parsed.items()))
        path = (*path, key)
    return path


def _entered(keys: tuple[str, ...], is_array: bool, entered: Counter[Path]) -> Path:
    """Return the path of a header, with the index of the newest element of an array of tables."""
    path: Path = ()
    for depth, key in enumerate(keys):
        path = (*path, key)
        if is_array and depth == len(keys) - 1:
            entered[path] += 1
        if entered[path]:
            path = (*path, entered[path] - 1)
    return path


def _paths(value: Any, path: Path = ()) -> list[Path]:
    """Return every path in the value, those of lists and tables too."""
    found = [path] if path else []
    for key, child in _children(value):
        found += _paths(child, (*path, key))
    return found


def _leaves(value: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    if not isinstance(value, (dict, list)):
        return [(path, value)]
    return [leaf for key, child in _children(value) for leaf in _leaves(child, (*path, key))]


def _children(value: Any) -> Iterable[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()
