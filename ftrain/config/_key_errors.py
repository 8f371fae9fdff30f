"""Errors of keys in a configuration, with source location and remedy, such as the nearest known key.

Pydantic's validation errors are translated into `Problem`s.
"""

from __future__ import annotations

import re

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ftrain.config._aliases import KEYS, unquoted, value_alias, with_point
from ftrain.config._source_locations import Path, Places, join
from ftrain.config.errors import Problem
from ftrain.config.keys import SECTIONS, keys
from ftrain.config.schema import Config
from ftrain.core._nearest import nearest

__all__ = ["explained"]


#: Largest number of errors in a message, because a suggestion for an unknown key takes milliseconds.
_MOST = 50


def explained(error: ValidationError, places: Places) -> list[Problem]:
    """Return one `Problem` per invalid key, from the first error that pydantic reports for it."""
    problems: dict[str, Problem] = {}
    errors = error.errors(include_url=False, include_context=True)
    for found in errors[:_MOST]:
        path = _path(found["loc"])
        key = join(path)
        message = _message(found, path)
        where = path[:-1] if found["type"] == "missing" else path
        problems.setdefault(key, Problem(key, places.of(where), message))
    more = len(errors) - _MOST
    rest = [Problem("", places.name, f"and {more:,} more problems.")] if more > 0 else []
    return [*problems.values(), *rest]


def _path(loc: tuple[int | str, ...]) -> Path:
    """Return the key path in pydantic's error location, without the entries that name union branches."""
    return tuple(part for part in loc if not (isinstance(part, str) and part in _BRANCHES))


#: Names by which pydantic calls a union's branches; none is a key here.
_BRANCHES = {"constrained-int", "constrained-float", "int", "float"}


def _message(found: ErrorDetails, path: Path) -> str:
    kind, value = found["type"], found["input"]
    if kind == "extra_forbidden":
        return "unknown key. " + _nearest(path)
    if kind == "missing":
        return _missing(path)
    says = found["msg"].replace("Input should be", "expected").replace("'", "")
    for pydantics, ours in _WORDS.items():
        says = says.replace(pydantics, ours)
    return f"{says}, got {_shown(value)}. {_remedy(found, path)}"


def _remedy(found: ErrorDetails, path: Path) -> str:
    """Return a sentence that suggests a valid value for an invalid one, if one can be guessed."""
    kind, value = found["type"], found["input"]
    if kind == "literal_error":
        near = value_alias(str(path[-1]), value, re.findall(r"'(.*?)'", found["msg"]))
        return f"Did you mean {near}?" if near else _CHANGE
    if kind.startswith(("int_", "float_", "bool_", "epochs")):
        plain = unquoted(value)
        if plain is not None:
            return f"Write {plain} without the quotes."
        if (point := with_point(value)) is not None:
            return f"Write {point}."
        if kind.startswith("bool_") and str(value).lower() in _TRUTH:
            return f"Write {_TRUTH[str(value).lower()]}."
    if kind == "string_type" and (near := value_alias(str(path[-1]), value)):
        return f"Did you mean {near}?"
    return _CHANGE


#: The remedy where no valid value can be guessed.
_CHANGE = "Change the value."


#: Truth values of YAML 1.1 and Python, which YAML 1.2 reads as texts or numbers.
_TRUTH = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}


_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid boolean": "true or false",
    "a valid tuple": "a list",
    "a finite number": "a finite number",
    "greater than or equal to": "at least",
    "a valid dictionary or instance of Checkpoint": "a mapping of keys to values",
    "a valid dictionary or instance of EarlyStopping": "a mapping such as {patience: 3}",
}


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _nearest(path: Path) -> str:
    *parents, last = path
    name, section = str(last), join(tuple(parents))
    if name in KEYS and not parents:
        return f"Write {KEYS[name]} instead."
    outer, dot, inner = name.partition(".")
    if dot and outer in SECTIONS and not parents:
        return f"Write the key as a section: `{outer}:`, and below it `{inner}:`."
    known = list(SECTIONS[section].model_fields if section in SECTIONS else Config.model_fields)
    prefix = section + "." if section else ""
    near = nearest(name, known)
    if near:
        return f"Did you mean {prefix}{near}?"
    leaves = {key.rpartition(".")[2]: key for key, _ in keys()}
    near = nearest(name, leaves)
    if near:
        return f"Did you mean {leaves[near]}?"
    return f"Choose one of {', '.join(known)}."


def _missing(path: Path) -> str:
    examples = {
        "model": "a registered name or `file.py:Class`, such as `model: model.py:Net`",
        "data": "a registered name or `file.py:function`, such as `data: digits`",
        "early_stopping.patience": "the number of evaluations without improvement that ends the run",
        "name": "a registered name or `file.py:NAME`",
    }
    key = join(path)
    return f"missing key. Write {examples.get(key) or examples.get(str(path[-1]), 'this key')}."
