"""Readers of the files of a run, which do not import torch."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

__all__ = ["is_number", "outcome", "rows"]


def rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Return the valid rows of a run's `metrics.jsonl`; `[]` if there is no such file."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and is_number(row.get("step")):
            found.append({**row, "split": str(row.get("split", "train"))})
    return found


def is_number(value: object) -> bool:
    """Return True if a value is an int or float that is finite as a float."""
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def outcome(folder: pathlib.Path) -> dict[str, Any]:
    """Return the content of a run's `result.json`; `{}` if it is missing or damaged."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(found, dict) and isinstance(found.get("status"), str)
    return found if whole and is_number(found.get("step")) else {}
