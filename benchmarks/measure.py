"""Reports of the benchmarks. The clock, machine and versions are those of `ftrain.bench`."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

from ftrain.bench import Turns, machine, take_turns, versions

__all__ = ["Report", "Turns", "arguments", "machine", "take_turns", "versions"]

RESULTS = pathlib.Path(__file__).parent / "results"


class Report:
    """Report of a benchmark, which prints results and stores them for a JSON file."""

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.content: dict[str, Any] = {
            "benchmark": name,
            "machine": machine(),
            "versions": versions(),
            "figures": {},
            "targets": [],
            "notes": [],
        }
        here, software = self.content["machine"], self.content["versions"]
        print(f"{title}\n{'=' * len(title)}")
        print(f"{here['cpu']}, {here['cores']} cores, {here['threads']} threads; ", end="")
        print(", ".join(f"{package} {version}" for package, version in software.items()))
        print(f"load average at the start {here['load']}", flush=True)

    def section(self, title: str) -> None:
        print(f"\n{title}", flush=True)

    def figure(self, key: str, value: float, unit: str, what: str) -> None:
        """Print and store one measured number."""
        self.content["figures"][key] = {"value": value, "unit": unit, "what": what}
        print(f"  {_number(value):>9} {unit:<6} {what}", flush=True)

    def turns(self, key: str, turns: Turns, unit: Literal["ms", "us"] = "ms") -> None:
        """Print and store the median time of each contender, the fastest first."""
        factor = {"ms": 1e3, "us": 1e6}[unit]
        for name in sorted(turns.seconds, key=turns.median):
            self.figure(f"{key}: {name}", turns.median(name) * factor, unit, name)

    def target(
        self, what: str, value: float, kind: Literal["at least", "at most"], bound: float
    ) -> None:
        """Print and store a measured number, and whether it meets a required bound."""
        met = value >= bound if kind == "at least" else value <= bound
        entry = {"what": what, "value": value, "kind": kind, "bound": bound, "met": met}
        self.content["targets"].append(entry)
        word = "met   " if met else "MISSED"
        print(f"  {word} {what}: {_number(value)}, must be {kind} {bound:g}", flush=True)

    def note(self, text: str) -> None:
        self.content["notes"].append(text)
        print(f"  note: {text}", flush=True)

    def save(self) -> pathlib.Path:
        """Write the report to `results/<name>-<machine>.json`."""
        RESULTS.mkdir(exist_ok=True)
        path = results_file(self.name, self.content["machine"])
        path.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
        print(f"\nsaved as {path.relative_to(RESULTS.parent.parent)}", flush=True)
        return path


def arguments(doc: str | None) -> argparse.Namespace:
    """Parse the command-line options that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few turns: checks the plumbing only")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def results_file(name: str, here: Mapping[str, Any]) -> pathlib.Path:
    """Return the file for the results of a benchmark on a machine, one for each kind of processor.

    Files named only `amd-epyc` or `intel` are older.

    Args:
        name: the benchmark.
        here: a description of the machine, from `ftrain.bench.machine`.
    """
    words = re.sub(r"[^a-z0-9]+", "-", here["cpu"].lower()).strip("-")
    return RESULTS / f"{name}-{words}-{here['cores']}-cores.json"


def _number(value: float) -> str:
    if value and abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def die_unless(condition: bool, message: str) -> None:
    """Exit with a message unless a condition holds, for example that contenders do the same work."""
    if not condition:
        sys.exit(f"benchmark refused: {message}")
