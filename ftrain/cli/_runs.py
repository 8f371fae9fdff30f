"""Functions that read the files of a run without importing torch."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from ftrain.config.errors import ConfigError
from ftrain.core._regular_files import read_json, read_lines

__all__ = ["is_number", "outcome", "rows"]


def rows(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yield the valid rows of a run's `metrics.jsonl`; no rows if the file is missing.

    Raises:
        ConfigError: the file cannot be read, such as a pipe.
    """
    path = folder / "metrics.jsonl"
    try:
        for line in read_lines(path):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and is_number(row.get("step")):
                yield {**row, "split": str(row.get("split", "train"))}
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _unreadable(path, error) from None


def is_number(value: object) -> bool:
    """Return True if a value is a finite float, or an int within the range of float."""
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def outcome(folder: pathlib.Path) -> dict[str, Any]:
    """Return the content of a run's `result.json`; `{}` if it is missing or damaged.

    Raises:
        ConfigError: the file cannot be read, such as a pipe.
    """
    path = folder / "result.json"
    try:
        found = read_json(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise _unreadable(path, error) from None
    whole = isinstance(found, dict) and isinstance(found.get("status"), str)
    return found if whole and is_number(found.get("step")) else {}


def _unreadable(path: pathlib.Path, error: OSError) -> ConfigError:
    return ConfigError.at("", path, f"{error.strerror or error}. Delete or replace it.")
