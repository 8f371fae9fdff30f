"""List the runs in a directory, with their progress and their metrics."""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import Any

from ftrain.cli._runs import is_number, outcome, rows
from ftrain.config.errors import ConfigError, did_you_mean
from ftrain.config.load import load
from ftrain.core._terminal import printable, say

#: A directory with one of these files is a run; `Trainer` in Python writes no configuration.
_FILES = ("config.yaml", "metrics.jsonl")

#: Metrics in the table, of the weights and of the averaged weights.
_FIGURES = ("loss", "accuracy", "perplexity")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ftrain runs` to its parser."""
    parser.add_argument(
        "folder", nargs="?", default="runs", help="directory of the runs; default: runs"
    )
    parser.add_argument(
        "--sort", metavar="COLUMN", help="column to sort by, such as eval/loss; default: by name"
    )


def run(options: argparse.Namespace) -> int:
    """Print a table of the runs in a directory, with one line per run."""
    folder = pathlib.Path(options.folder)
    found = sorted({path.parent for name in _FILES for path in folder.rglob(name)})
    if not found:
        say(f"no runs in {folder}. Make one with `ftrain train CONFIG`", error=True)
        return 1
    table = [_row(path, folder) for path in found]
    columns = list(dict.fromkeys(column for row in table for column in row))
    if options.sort is not None:
        if options.sort not in columns:
            meant = did_you_mean(options.sort, columns)
            say(f"ftrain runs: unknown column {options.sort}. {meant}", error=True)
            return 2
        table.sort(key=lambda row: _rank(row.get(options.sort, "")))
    say(_table(columns, table))
    return 0


def _row(path: pathlib.Path, folder: pathlib.Path) -> dict[str, str]:
    name = str(path.relative_to(folder)) if path != folder else path.name
    ended: dict[str, Any] = {}
    last: dict[str, dict[str, Any]] = {}
    step, seconds = 0, None
    try:
        ended = outcome(path)
        for row in rows(path):
            last[row["split"]] = row
            step, seconds = max(step, row["step"]), row.get("time")
    except ConfigError as error:
        say(f"note: {error}", error=True)
    step = ended.get("step") or step
    status = ended.get("status", "unfinished" if _has_config(path) else "")
    found = {"run": name, "status": status, "step": f"{step:,}"}
    for split in ("train", "eval"):
        values = last.get(split, {})
        found |= {
            f"{split}/{metric}": f"{value:.4g}"
            for metric, value in values.items()
            if metric.removeprefix("ema/") in _FIGURES and is_number(value)
        }
    if is_number(seconds):
        found["seconds"] = f"{seconds:.0f}"
    found |= _settings(path) if _has_config(path) else {"model": "(trained in Python)"}
    return {column: printable(cell, one_line=True) for column, cell in found.items()}


def _has_config(path: pathlib.Path) -> bool:
    return os.path.lexists(path / "config.yaml")


def _settings(path: pathlib.Path) -> dict[str, str]:
    try:
        config = load(path / "config.yaml")
    except ConfigError:
        return {"model": "(config.yaml cannot be read)"}
    rate = config.optimizer.learning_rate
    return {
        "model": config.model.name.rpartition("/")[2],
        "optimizer": config.optimizer.name + ("" if rate is None else f" {rate:g}"),
        "seed": str(config.seed),
    }


def _rank(cell: str) -> tuple[int, float, str]:
    try:
        return (0, float(cell.replace(",", "")), cell)
    except ValueError:
        return (1, 0.0, cell) if cell else (2, 0.0, cell)


def _table(columns: list[str], table: list[dict[str, Any]]) -> str:
    widths = {c: max(len(c), *(len(row.get(c, "")) for row in table)) for c in columns}
    lines = [{c: c for c in columns}, *table]
    return "\n".join(
        "  ".join(row.get(c, "").ljust(widths[c]) for c in columns).rstrip() for row in lines
    )
