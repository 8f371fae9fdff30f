"""Limits on the size of a configuration, against mistakes and against attacks that exhaust memory."""

from __future__ import annotations

from typing import Any

from ftrain.config._source_locations import Path, join
from ftrain.config.errors import ConfigError

__all__ = ["DEEPEST", "MOST_CHARACTERS", "MOST_NODES", "check_limits", "check_text", "too_large"]

MOST_CHARACTERS = 1_000_000
#: Largest number of values; only YAML aliases of aliases expand to more.
MOST_NODES = 100_000
DEEPEST = 60
#: Largest integer in bits; Python cannot print integers of more than 4,300 digits (14,284 bits).
MOST_BITS = 8192


def check_text(text: str, name: str) -> None:
    """Raise `ConfigError` for a text that is too long to parse; parsers take seconds for a megabyte."""
    if len(text) > MOST_CHARACTERS:
        says = (
            f"expected at most {MOST_CHARACTERS:,} characters, got {len(text):,}. Shorten the text."
        )
        raise ConfigError.at("", name, says)


def check_limits(value: Any, name: str, path: Path = ()) -> None:
    """Raise `ConfigError` for a document that is too large or too deep, or for a giant integer.

    Args:
        value: the document.
        name: the name of the document in messages.
        path: key path of the document.
    """
    # A list instead of recursion, because the document may be deeper than Python's stack.
    made, stack = 0, [(value, path)]
    while stack:
        node, path = stack.pop()
        made += 1
        if made > MOST_NODES or len(path) > DEEPEST:
            raise too_large(path, name)
        if isinstance(node, int) and node.bit_length() > MOST_BITS:
            got = f"got {node.bit_length()}. Write a smaller number."
            says = f"expected an integer of at most {MOST_BITS} bits, {got}"
            raise ConfigError.at(join(path), name, says)
        if isinstance(node, (dict, list, tuple)):
            children = node.items() if isinstance(node, dict) else enumerate(node)
            stack += [(child, (*path, key)) for key, child in children]


def too_large(path: Path, name: str) -> ConfigError:
    """Return the error for a document with too many values, or too many levels."""
    says = f"expected at most {MOST_NODES:,} values in {DEEPEST} levels, got more"
    return ConfigError.at(join(path[:3]), name, f"{says}. Shorten the configuration.")
