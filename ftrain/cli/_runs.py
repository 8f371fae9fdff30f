"""Run directories, as the commands see them; torch is not imported for that."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import yaml

from ftrain.config.errors import ConfigError
from ftrain.config.load import load
from ftrain.config.schema import Config

__all__ = ["is_number", "load_run", "outcome", "rows", "run_folder"]


def run_folder(name: str) -> pathlib.Path:
    """The directory of a run; or `ConfigError` that lists those there are."""
    folder = pathlib.Path(name)
    if (folder / "config.yaml").is_file():
        return folder
    if folder.name == "config.yaml" and folder.is_file():
        return folder.parent
    around = sorted({*folder.glob("*/config.yaml"), *folder.parent.glob("*/config.yaml")})
    there = ", ".join(str(path.parent) for path in around[:10])
    advice = f"There are: {there}" if there else "`ftrain train CONFIG` makes one"
    what = "holds no run (it has no config.yaml)" if folder.is_dir() else "is no directory"
    raise ConfigError.at("", str(folder), f"{what}. {advice}")


def load_run(folder: pathlib.Path, overrides: list[str]) -> Config:
    """The configuration of a run, which goes on in the directory where it lies now."""
    quoted = yaml.safe_dump(
        str(folder), default_style='"', width=1 << 20
    )  # JSON splits an emoji in two
    here = f"output_dir={quoted}"
    return load(folder / "config.yaml", [*overrides, here])


def rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` that are rows; one that a crash cut short is none."""
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
    """Whether it is a finite number; an int that no float can hold is none."""
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:
        return False


def outcome(folder: pathlib.Path) -> dict[str, Any]:
    """How the run ended, as `result.json` has it; `{}` while it goes on, or after a crash."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(found, dict) and isinstance(found.get("status"), str)
    return found if whole and is_number(found.get("step")) else {}
