"""Preprocessing fitted on a run's training data (scales, classes, an alphabet), beside its checkpoints.

`data.json` in the run's directory, readable by people as well:

    {"source": "csv", "facts": {"features": 4, ...},
     "fitted": {"rows": 120, "columns": {"weight": {"mean": 4.1, "scale": 0.8}}, ...}}

Data that the run reads later are transformed by it; `facts` describe the data: the model can be
built without them. Read next: `sources/table.py`, which fits most.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ftrain.config.build import Parts
from ftrain.config.errors import ConfigError
from ftrain.config.schema import Config

__all__ = ["FILE", "check_unchanged", "content", "kept", "lost", "told"]

FILE = "data.json"

#: Differences that are listed.
_LISTED = 6


def content(parts: Parts) -> str | None:
    """Return the content of `data.json`; `None` if the data source fits nothing."""
    if parts.fitted is None:
        return None
    found = {"source": _source(parts.config), "fitted": parts.fitted}
    if _is_json(dict(parts.facts)):
        found["facts"] = parts.facts
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def kept(config: Config, folder: pathlib.Path) -> Mapping[str, Any]:
    """Return the fitted preprocessing of a run; empty if there is none, as in former versions.

    Raises:
        ConfigError: the file is damaged, or of another data function.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused)
        source, fitted = found["source"], dict(found["fitted"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        says = f"this is not what a run wrote ({error}): put the original back, or begin a new run"
        raise ConfigError.at("", path, says) from None
    if source != _source(config):
        raise ConfigError.at(
            "data.name",
            config.places.of(("data", "name")),
            f"the run has learnt from {source} ({path}), and cannot read what {config.data.name} reads: "
            "begin a new run",
        )
    return fitted


def told(folder: pathlib.Path) -> Mapping[str, Any] | None:
    """Return the stored facts; `None` if JSON cannot hold them, or for runs of former versions."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8")).get("facts")
    except FileNotFoundError:
        return None
    return found if isinstance(found, dict) else None


def lost(parts: Parts, folder: pathlib.Path, fitted: Mapping[str, Any] | None) -> str | None:
    """Return the warning for a run whose data.json is missing."""
    if fitted is None or fitted or parts.fitted is None:
        return None
    return (
        f"{folder} has no {FILE}: a former version wrote it, or the file is lost: put it back. "
        "Scales, classes or alphabet are those of the data read now; a target is taken as it stands"
    )


def check_unchanged(parts: Parts, fitted: Mapping[str, Any], remedy: str) -> None:
    """Raise if the training data fit other preprocessing than the run's.

    Raises:
        ConfigError: it names what differs.
    """
    if not fitted or parts.fitted is None:
        return
    found = list(_differences(fitted, parts.fitted))
    if found:
        config = parts.config
        more = [f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
        lines = "\n  ".join(["", *found[:_LISTED], *more])
        says = f"these are not the training data that the run has learnt from:{lines}\n{remedy}"
        raise ConfigError.at("data", config.places.of(("data",)), says)


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number that is learnt")


def _is_json(value: Any) -> bool:
    """Return True if the value survives a round trip through JSON."""
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


def _source(config: Config) -> str:
    """Return the function's name, independent of the location of its file."""
    return config.data.name.rpartition(":")[2]


def _differences(was: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*was, *now)):
            path = f"{key}.{name}" if key else name
            if name not in now or name not in was:
                yield f"{path}: {'is new' if name in now else 'is no longer there'}"
            else:
                yield from _differences(was[name], now[name], path)
    elif was != now:
        if key == "sha256":
            yield "sha256: the contents are others"
        elif isinstance(was, (str, list)) and type(was) is type(now):
            gone, new = ([one for one in a if one not in b] for a, b in ((was, now), (now, was)))
            parts = [("no longer", gone), ("new", new)]
            said = [f"{what} {_shown(some)}" for what, some in parts if some]
            yield f"{key}: {'; '.join(said) or 'in another order'}"
        else:
            yield f"{key}: {_shown(was)} then, {_shown(now)} now"


def _shown(value: Any) -> str:
    text = ", ".join(map(repr, value)) if isinstance(value, list) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
