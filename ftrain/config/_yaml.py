"""YAML 1.2 parser that also returns the line of each key.

PyYAML follows YAML 1.1, in which `1e-3` is a string, `no` is false, `12:30` is 750 and `010` is 8.
This parser follows the core schema of YAML 1.2, in which `1e-3` is a number, `no` (as in a list of
country codes) a string and `010` is 10.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ftrain.config._limits import DEEPEST, MOST_NODES, too_large
from ftrain.config._source_locations import Path, Places, join
from ftrain.config.errors import ConfigError

__all__ = ["compose", "parse_yaml", "read", "scalar"]


def parse_yaml(text: str, name: str) -> tuple[Any, Places]:
    """Parse YAML 1.2 text; return the document, and the line of each key."""
    try:
        node = compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError.at("", place, f"invalid YAML: {_reason(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError.at(
            "", name, f"invalid YAML: {' '.join(str(error).split())}. Correct the file."
        ) from None
    except RecursionError:
        raise ConfigError.at(
            "", name, "invalid YAML: nested too deeply. Write fewer levels."
        ) from None
    return read(node, name)


def compose(text: str) -> yaml.Node | None:
    """Parse YAML text into nodes that have line numbers; return `None` if the text is empty."""
    return yaml.compose(text, Loader=_Loader)


def read(node: yaml.Node | None, name: str) -> tuple[Any, Places]:
    """Convert parsed YAML nodes to a document; return the document, and the line of each key."""
    reader = _Reader(name)
    return (None if node is None else reader.read(node, ())), reader.places


def scalar(text: str) -> Any:
    """Return the value of an unquoted scalar by the core schema of YAML 1.2.

    Example:
        >>> scalar("1e-3"), scalar("no"), scalar("010"), scalar("true"), scalar("")
        (0.001, 'no', 10, True, None)
    """
    for pattern, convert in _SCALARS:
        if pattern.fullmatch(text):
            return convert(text)
    return text


def _integer(text: str) -> int | float:
    digits = text.lstrip("+-")
    base = {"0x": 16, "0o": 8}.get(digits[:2], 10)
    # Python refuses to convert longer integers. No setting has so many digits.
    return int(text, base) if len(text) < 4000 else float("inf")


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(r"~|null|Null|NULL|"), lambda _: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), _integer),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), _float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), _float),
)


#: Tags of nodes to which the file gives no type (`!` marks a string).
_TAGS = ("!", *(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")))


class _Loader(yaml.SafeLoader):
    """PyYAML loader that only composes nodes; it resolves no tags, so it runs no code."""

    made = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.made += 1
        if self.made > MOST_NODES:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # of PyYAML
            raise yaml.MarkedYAMLError(
                problem=f"more than {MOST_NODES:,} values", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {}


def _reason(error: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (error.context, error.problem) if part]
    reason = ", ".join(parts)
    tabs = "\\t" in reason
    return f"{reason}. {'Indent with spaces, not with tabs' if tabs else 'Correct the line'}."


class _Reader:
    """Converter of YAML nodes to Python values, with a limit on their number and depth."""

    def __init__(self, name: str) -> None:
        self.name, self.places, self.made = name, Places(name), 0

    def read(self, node: yaml.Node, path: Path) -> Any:
        self.made += 1
        place = f"{self.name}:{node.start_mark.line + 1}"
        if self.made > MOST_NODES or len(path) > DEEPEST:
            raise too_large(path, place)
        if node.tag not in _TAGS:
            raise ConfigError.at(
                join(path),
                place,
                f"expected a value without a tag, got {node.tag}. Remove the tag.",
            )
        self.places.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        plain = isinstance(node, yaml.ScalarNode) and node.style is None and node.tag != "!"
        return scalar(str(node.value)) if plain else str(node.value)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.value == "":
                raise ConfigError.at(
                    join(path),
                    f"{self.name}:{line}",
                    "expected a key with a name, got none. Write a name before the colon.",
                )
            here = (*path, key.value)
            if key.value in found:
                first = self.places.lines[here]
                got = f"got two, the first on line {first}. Remove one of them."
                says = f"expected one value for this key, {got}"
                raise ConfigError.at(join(here), f"{self.name}:{line}", says)
            self.places.lines[here] = line
            found[key.value] = self.read(value, here)
        return found
