"""JSON parser that also returns the line of each key, from a second parse of the text as YAML."""

from __future__ import annotations

import collections
import json
from typing import Any

import yaml

from ftrain.config._source_locations import Places
from ftrain.config._yaml import compose, read
from ftrain.config.errors import ConfigError

__all__ = ["parse_json"]


def parse_json(text: str, name: str) -> tuple[Any, Places]:
    """Parse JSON text; return the document, and the line of each key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = collections.Counter(key for key, _ in pairs)
            twice = next(key for key, count in counts.items() if count > 1)
            raise ConfigError.at(
                twice, name, "expected one value for this key, got two. Remove one of them."
            )
        return found

    try:
        parsed = json.loads(text, parse_constant=_refused, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        place = f"{name}:{error.lineno}:{error.colno}"
        raise ConfigError.at("", place, f"invalid JSON: {error.msg}. Correct the line.") from None
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError.at(
            "", name, "invalid JSON: nested too deeply. Write fewer levels."
        ) from None
    except ValueError as error:
        raise ConfigError.at("", name, f"invalid JSON: {error}.") from None
    try:  # YAML accepts JSON, except for tabs between tokens
        node = compose(text.replace("\t", " "))
    except (yaml.YAMLError, RecursionError):  # JSON accepts characters that YAML refuses
        return parsed, Places(name)
    return parsed, read(node, name)[1]


def _refused(constant: str) -> float:
    raise ValueError(f"expected a finite number, got {constant}. Write a number or null")
