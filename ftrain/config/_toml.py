"""TOML parser; `tomllib` reports the line of a syntax error, but not the lines of keys."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from ftrain.config._limits import check_limits
from ftrain.config._source_locations import Path, Places, join
from ftrain.config.errors import ConfigError

__all__ = ["parse_toml"]


def parse_toml(text: str, name: str) -> tuple[Any, Places]:
    """Parse TOML text; return the document, and `Places` that hold the file name but no lines."""
    try:
        parsed = tomllib.loads(text)
    except RecursionError:
        raise ConfigError.at(
            "", name, "invalid TOML: nested too deeply. Write fewer levels."
        ) from None
    except ValueError as error:  # includes integers of thousands of digits
        message, *where = re.split(r" \(at line (\d+), column (\d+)\)", str(error))
        place = ":".join([name, *where[:2]])
        raise ConfigError.at(
            "", place, f"invalid TOML: {message.rstrip('.')}. Correct the file."
        ) from None
    check_limits(parsed, name)
    _check_values(parsed, (), name)
    return parsed, Places(name)


def _check_values(value: Any, path: Path, name: str) -> None:
    """Raise `ConfigError` for a TOML date or time, which no key accepts."""
    if isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            _check_values(child, (*path, key), name)
    elif not isinstance(value, (str, int, float)):
        kind = type(value).__name__
        raise ConfigError.at(
            join(path), name, f"expected a text or number, got a {kind}. Quote it."
        )
