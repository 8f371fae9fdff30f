"""Timing and reports of the benchmarks: interleaved rounds, medians, ratios, machine, versions."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

__all__ = ["Report", "Turns", "arguments", "machine", "take_turns", "versions"]

RESULTS = pathlib.Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Turns:
    """Seconds per call of each contender in each round; in a round, each contender is timed once."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def fastest(self, names: Sequence[str]) -> str:
        return min(names, key=self.median)

    def ratio(self, numerator: str, denominator: str) -> float:
        """Return the median over the rounds of the ratio of two contenders' times in a round."""
        pairs = zip(self.seconds[numerator], self.seconds[denominator], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def spread(self, numerator: str, denominator: str) -> tuple[float, float]:
        """Return the quartiles over the rounds of the ratio of two contenders' times in a round."""
        pairs = zip(self.seconds[numerator], self.seconds[denominator], strict=True)
        low, _, high = statistics.quantiles([a / b for a, b in pairs], n=4)
        return low, high


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    warmup: int = 3,
) -> Turns:
    """Time the contenders in turn, round after round, so that other load affects all of them.

    A turn is about `seconds` long, of at least one call, and of the same number of calls in each round.
    Each round starts with another contender, so that none always follows the same one's caches.
    """
    calls = {}
    for name, call in contenders.items():
        for _ in range(warmup):
            call()
        calls[name] = max(1, round(seconds / _time(call, 2)))
    names = list(contenders)
    gc.collect()
    gc.freeze()  # so that the collections between turns are short
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            found[name].append(_time(contenders[name], calls[name]))
    gc.unfreeze()
    return Turns(found)


def _time(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


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
        path = RESULTS / f"{self.name}-{_slug(self.content['machine'])}.json"
        path.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
        print(f"\nsaved as {path.relative_to(RESULTS.parent.parent)}", flush=True)
        return path


def machine() -> dict[str, Any]:
    """Return a description of the machine: processor, cores, and threads of this process."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "optree", "jax", "optax"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def arguments(doc: str | None) -> argparse.Namespace:
    """Parse the command-line options that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few turns: checks the plumbing only")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser.parse_args()


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            fields = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        detail = f"family {fields['cpu family']} model {fields['model']}"
        return f"{fields['model name']} ({detail})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _slug(here: Mapping[str, Any]) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", here["cpu"].split("(")[0].lower()).strip("-")
    return f"{words}-{here['cores']}-cores"


def _number(value: float) -> str:
    if value and abs(value) < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def die_unless(condition: bool, message: str) -> None:
    """Exit with a message unless a condition holds, for example that contenders do the same work."""
    if not condition:
        sys.exit(f"benchmark refused: {message}")
