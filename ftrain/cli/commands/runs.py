"""List the runs in a directory, with their progress and their metrics."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from ftrain.cli._runs import is_number, outcome, rows
from ftrain.config.errors import ConfigError, did_you_mean
from ftrain.config.load import load

#: Metrics that the table shows, of the weights and of their average.
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
    found = sorted(path.parent for path in folder.rglob("config.yaml"))
    if not found:
        print(f"no runs in {folder}. Make one with `ftrain train CONFIG`", file=sys.stderr)
        return 1
    table = [_row(path, folder) for path in found]
    columns = list(dict.fromkeys(column for row in table for column in row))
    if options.sort is not None:
        if options.sort not in columns:
            meant = did_you_mean(options.sort, columns)
            print(f"ftrain runs: unknown column {options.sort}. {meant}", file=sys.stderr)
            return 2
        table.sort(key=lambda row: _rank(row.get(options.sort, "")))
    print(_table(columns, table))
    return 0


def _row(path: pathlib.Path, folder: pathlib.Path) -> dict[str, str]:
    name = str(path.relative_to(folder)) if path != folder else path.name
    ended, seen = outcome(path), rows(path)
    last = {row.get("split"): row for row in seen}
    step = ended.get("step") or max((row.get("step", 0) for row in seen), default=0)
    found = {"run": name, "status": ended.get("status", "unfinished"), "step": f"{step:,}"}
    for split in ("train", "eval"):
        values = last.get(split, {})
        found |= {
            f"{split}/{metric}": f"{value:.4g}"
            for metric, value in values.items()
            if metric.removeprefix("ema/") in _FIGURES and is_number(value)
        }
    if seen and is_number(seen[-1].get("time")):
        found["seconds"] = f"{seen[-1]['time']:.0f}"
    return found | _settings(path)


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
