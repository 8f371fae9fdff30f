"""Measure the peers: `python -m benchmarks.peers`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import peers
from benchmarks.measure import Report
from benchmarks.peers import goals, growth, table
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.results import Results
from benchmarks.peers.workloads import TINY, WORKLOADS, Workload


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    Report("peers", "A training step, ftrain and its peers")
    if options.quick:
        print("tiny sizes and two turns: checks the plumbing only, the figures mean nothing")
    results = Results(not options.no_save, "peers-quick" if options.quick else "peers")
    deadline = time.monotonic() + 60 * options.minutes
    settings: dict[str, Any] = {
        "rounds": 2 if options.quick else options.rounds,
        "seconds": 0.0 if options.quick else options.seconds,
        "backend": None if options.quick else "inductor",
    }

    def late(what: str) -> bool:
        if time.monotonic() < deadline:
            print(f"\nmeasuring {what}", flush=True)
            return False
        print(f"\n{what}: not measured, because the {options.minutes:g} minutes are over")
        return True

    measured = goals.Measured(results, options.quick, options.contenders, settings)
    for work in _works(options):
        if not late(work.key):
            measured.cell(work)
    for axis in options.growth:
        if not late(f"growth with {axis}"):
            values = 2 if options.quick else None
            cells = growth.grow(axis, options.contenders, values, **settings)
            print(*table.growth_lines(axis, cells), sep="\n", flush=True)
            results.add_growth(axis, cells)
    for name in options.goals:
        if not late(f"goal {name}"):
            found_goals = goals.GOALS[name](measured)
            print(f"goal {name}", *found_goals, sep="\n  ", flush=True)
            results.add_goals(name, [goal.to_json() for goal in found_goals])
    for path in results.plot():
        print(f"saved {path.name} in {path.parent}")
    if results.refused:
        print(f"not the same step: {', '.join(results.refused)}")
    return bool(results.refused)


def _works(options: argparse.Namespace) -> list[Workload]:
    known = TINY if options.quick else WORKLOADS
    return [
        dataclasses.replace(known[name], accumulate=accumulate, precision=precision)
        for name in options.workloads
        for accumulate in options.accumulate
        for precision in options.precision
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=peers.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _names(parser, "--workloads", WORKLOADS)
    _names(parser, "--contenders", CONTENDERS)
    _names(parser, "--precision", ("32-true", "bf16-mixed"), "32-true")
    _names(parser, "--growth", growth.AXES, "")
    _names(parser, "--goals", goals.GOALS, "", nargs="?", const=",".join(goals.GOALS))
    parser.add_argument("--accumulate", type=_integers, default=[1], help="such as 1,4,16")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a turn")
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="after these, start no other measurement",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: checks the plumbing only")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    if options.workloads is None:
        options.workloads = [] if options.growth or options.goals else list(WORKLOADS)
    options.contenders = options.contenders or list(CONTENDERS)
    return options


def _names(
    parser: argparse.ArgumentParser,
    flag: str,
    known: Any,
    default: str | None = None,
    **options: Any,
) -> None:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(known)}, got {', '.join(unknown)}"
            )
        return names

    parser.add_argument(flag, type=parse, default=default, help=", ".join(known), **options)


def _integers(text: str) -> list[int]:
    values = [int(each) for each in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"expected integers of at least 1, got {text}")
    return values


if __name__ == "__main__":
    sys.exit(main())
