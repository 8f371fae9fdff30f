"""Preprocessing fitted on training data (scales, classes, an alphabet), stored as JSON.

It is stored as `data.json` in a run's directory:

    {"source": "csv", "facts": {"features": 4, ...},
     "fitted": {"rows": 120, "columns": {"weight": {"mean": 4.1, "scale": 0.8}}, ...}}

Data that the run reads later are transformed with `fitted`. `facts` describe the data, so that a model
can be built without reading them. Read next: `sources/table.py`, which fits most of this.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ftrain.core._regular_files import read_json
from ftrain.core._words import one_line
from ftrain.core.errors import DataError

__all__ = ["FILE", "Stored", "differences", "read", "to_json"]

FILE = "data.json"


class Stored(NamedTuple):
    """Content of a run's `data.json` file: its data function and the preprocessing fitted by it.

    Attributes:
        source: the name of the data function.
        fitted: the preprocessing that it fitted.
        facts: the values with which it describes the data; `None` if JSON cannot represent them.
    """

    source: str
    fitted: Mapping[str, Any]
    facts: Mapping[str, Any] | None


def to_json(stored: Stored) -> str:
    """Return the text of a `data.json` file; omit the data's `facts` if JSON cannot represent them."""
    found = {"source": stored.source, "fitted": stored.fitted}
    if stored.facts is not None and _is_json(dict(stored.facts)):
        found["facts"] = stored.facts
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def read(path: pathlib.Path) -> Stored | None:
    """Return the content of a `data.json` file, or `None` if the file does not exist.

    Raises:
        DataError: the file is damaged.
    """
    try:
        found = read_json(path, parse_constant=_refused)
        facts = found.get("facts")
        return Stored(
            found["source"], dict(found["fitted"]), facts if isinstance(facts, dict) else None
        )
    except FileNotFoundError:
        return None
    except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: the file was changed after the run wrote it ({one_line(why)}). Restore the "
            "original, or begin a new run."
        ) from None


def differences(was: Any, now: Any, key: str = "") -> Iterator[str]:
    """Yield one line for each value that differs between two fitted preprocessings."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*was, *now)):
            path = f"{key}.{name}" if key else name
            if name not in now or name not in was:
                yield f"{path}: {'added' if name in now else 'removed'}"
            else:
                yield from differences(was[name], now[name], path)
    elif was != now:
        if key == "sha256":
            yield "sha256: the contents differ"
        elif isinstance(was, (str, list)) and type(was) is type(now):
            gone, new = ([one for one in a if one not in b] for a, b in ((was, now), (now, was)))
            parts = [("removed", gone), ("added", new)]
            listed = [f"{what} {_shown(some)}" for what, some in parts if some]
            yield f"{key}: {'; '.join(listed) or 'in another order'}"
        else:
            yield f"{key}: expected {_shown(was)}, got {_shown(now)}"


def _refused(constant: str) -> float:
    raise ValueError(f"expected finite numbers in the fitted preprocessing, got {constant}")


def _is_json(value: Any) -> bool:
    """Return True if conversion to JSON and back returns an equal value."""
    try:
        return _same(json.loads(json.dumps(value, allow_nan=False)), value)
    except (TypeError, ValueError, RecursionError):
        return False


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _shown(value: Any) -> str:
    text = ", ".join(map(repr, value)) if isinstance(value, list) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
