"""JSON with the line of every key. The standard parser validates it; this module finds the lines."""

from __future__ import annotations

import json
import re
from typing import Any

from ftrain.config._places import Path, Places, join
from ftrain.config.errors import ConfigError

__all__ = ["parse_json"]

_SPACE = re.compile(r"[ \t\n\r]*")


def parse_json(text: str, name: str) -> tuple[Any, Places]:
    """Return the document, and the line of each of its keys."""
    try:
        parsed = json.loads(text, parse_constant=_refused)
    except json.JSONDecodeError as error:
        place = f"{name}:{error.lineno}"
        raise ConfigError.at("", place, f"this is no JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise ConfigError.at("", name, f"this is no JSON: {error}") from None
    walk = _Walk(text, name)
    walk.value(walk.space(0), ())
    return parsed, walk.places


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number in JSON")


class _Walk:
    """Second pass over valid JSON, for line numbers only."""

    def __init__(self, text: str, name: str) -> None:
        self.text, self.places = text, Places(name)
        self.decoder = json.JSONDecoder()

    def line(self, at: int) -> int:
        return self.text.count("\n", 0, at) + 1

    def space(self, at: int) -> int:
        found = _SPACE.match(self.text, at)
        return found.end() if found else at

    def value(self, at: int, path: Path) -> int:
        """Return the position after the value that begins here."""
        self.places.lines.setdefault(path, self.line(at))
        if self.text[at] not in "[{":
            return self.decoder.raw_decode(self.text, at)[1]
        closing, index = {"[": "]", "{": "}"}[self.text[at]], 0
        at = self.space(at + 1)
        while self.text[at] != closing:
            key: str | int = index
            if closing == "}":
                begin = at
                key, at = self.decoder.raw_decode(self.text, at)
                self.once((*path, key), begin)
                at = self.space(self.space(at) + 1)  # past the colon
            at = self.space(self.value(at, (*path, key)))
            if self.text[at] == ",":
                at = self.space(at + 1)
            index += 1
        return at + 1

    def once(self, path: Path, at: int) -> None:
        if path in self.places.lines:
            before = self.places.lines[path]
            place = f"{self.places.name}:{self.line(at)}"
            raise ConfigError.at(join(path), place, f"is written twice; first in line {before}")
        self.places.lines[path] = self.line(at)
