"""Run mutants of `ftrain/core`, and print which survive."""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
from pathlib import Path

from tests.mutants import coverage
from tests.mutants.mutations import Mutant, mutants
from tests.mutants.subjects import LAWS, SUBJECTS
from tests.mutants.trial import KILLED, SURVIVED, TIMED_OUT, trial

ROOT = Path(__file__).parents[2]
NOT_RUN = "not run"  # no test runs the line
SAVED = ROOT / "build" / "mutants"
# Seconds of tests for a mutant, as measured while they were traced: of the first tests, and of those
# that judge a mutant which survived them.
BUDGETS = (5.0, 120.0)


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.names if name not in SUBJECTS]
    if unknown:
        print(f"expected names out of {list(SUBJECTS)}, got {unknown}")
        return 2
    names = options.names or list(SUBJECTS)
    found = _coverage(names, options.again)
    todo = [(name, each) for name in names for each in mutants(*_source(name))]
    random.Random(options.seed).shuffle(todo)
    until = time.monotonic() + 60 * options.minutes
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, mutant in todo:
        if time.monotonic() > until:
            break
        result = _judge(name, mutant, found)
        counts[name][result] += 1
        if result != KILLED:
            print(f"{result}: {mutant}".replace(f"{ROOT}/", ""), flush=True)
    return _report(counts, len(todo))


def _judge(name: str, mutant: Mutant, found: coverage.Coverage) -> str:
    tests = _spread(found.tests_of(mutant.path, mutant.line, mutant.last))
    result = NOT_RUN
    for budget in BUDGETS:
        seconds, chosen = 0.0, []
        while tests and (not chosen or seconds + found.seconds[tests[0]] <= budget):
            chosen.append(tests.pop(0))
            seconds += found.seconds[chosen[-1]]
        if chosen and result in (NOT_RUN, SURVIVED):
            result = trial(mutant, f"ftrain.core.{name}", chosen, 60 + 5 * seconds)
    return result


def _spread(tests: list[str]) -> list[str]:
    """Return tests in an order that takes one case of each function, then a second one, and so on."""
    cases: dict[str, int] = collections.Counter()
    turns = []
    for test in tests:
        function = test.partition("[")[0]
        turns.append((cases[function], test))
        cases[function] += 1
    return [test for _, test in sorted(turns, key=lambda turn: turn[0])]


def _report(counts: dict[str, collections.Counter[str]], planned: int) -> int:
    everything: collections.Counter[str] = sum(counts.values(), collections.Counter())
    columns = (KILLED, TIMED_OUT, SURVIVED, NOT_RUN)
    print(f"\n{'module':16}" + "".join(f"{column:>11}" for column in columns) + f"{'killed':>9}")
    for name, of_name in [*sorted(counts.items()), ("all", everything)]:
        share = 100 * of_name[KILLED] / max(1, of_name.total())
        print(f"{name:16}" + "".join(f"{of_name[c]:>11}" for c in columns) + f"{share:>8.1f}%")
    print(f"{everything.total()} of {planned} mutants were tried.")
    return 0


def _coverage(names: list[str], again: bool) -> coverage.Coverage:
    files = dict.fromkeys([file for name in names for file in SUBJECTS[name]] + list(LAWS))
    files |= dict.fromkeys(f"ftrain/core/{name.replace('.', '/')}.py" for name in names)
    parts = []
    for file in files:
        path = SAVED / f"{file.replace('/', '.')}.json"
        if again or not path.exists():
            start = time.monotonic()
            coverage.save(coverage.record([file], 3600), path)
            print(f"traced {file} in {time.monotonic() - start:.0f} s", flush=True)
        parts.append(coverage.load(path))
    return coverage.merged(parts)


def _source(name: str) -> tuple[str, str]:
    path = ROOT / "ftrain" / "core" / f"{name.replace('.', '/')}.py"
    return str(path), path.read_text()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"out of {', '.join(SUBJECTS)}")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the mutants")
    parser.add_argument("--again", action="store_true", help="trace the tests anew")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
