"""Try mutants of `ftrain/core`; print those that survive, and the share that is killed."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.mutants import lines, survey
from tests.mutants.lines import Lines
from tests.mutants.mutations import Mutant, mutants
from tests.mutants.subjects import ROOT, imported, judges, relatives, subjects
from tests.mutants.survey import NOT_RUN, Key, Result
from tests.mutants.swap import changed_functions, functions_of, import_tests, swap, swappable
from tests.mutants.trial import (
    KILLED,
    SURVIVED,
    TIMED_OUT,
    Outcome,
    failures,
    importing,
    passed_on,
    prepare,
    trial,
)

SAVED = ROOT / "build" / "mutants"
# Seconds, of a processor, of the tests that judge every mutant; those that survive are judged by more.
FIRST = 3.0
# Times that a trial may take as long as its tests did when they were traced.
PATIENCE = 5.0


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    modules = subjects()
    unknown = [name for name in options.names if name not in modules]
    if unknown:
        print(f"expected names out of {list(modules)}, got {unknown}")
        return 2
    prepare()
    found = lines.of_files(judges(), SAVED, options.again)
    names = options.names or list(modules)
    population = [(name, each) for name in names for each in mutants(*_source(modules[name]))]
    sample = random.Random(options.seed).sample(population, len(population))[: options.sample]
    drawn = sample
    results: list[Result] = []
    saved = SAVED / f"results-{options.seed}.json"
    if options.resume or options.survivors:
        keys = {survey.key(name, each) for name, each in sample}
        earlier = [each for each in survey.load(saved) if each.key in keys]
        results = [each for each in earlier if each.is_killed or not options.survivors]
        tried = {each.key for each in results}
        drawn = [(name, each) for name, each in sample if survey.key(name, each) not in tried]
    until = time.monotonic() + 60 * options.minutes
    judge = _Judge(found, options.budget)
    swaps = [False for _ in sample]
    if not options.imported:
        swaps = swappable(
            [mutant for _, mutant in sample], "ftrain", lambda: import_tests(judges())
        )
    # First those that must be imported, in forks of a process that has not imported ftrain.
    for judge.swaps in (False, True):
        pairs = zip(sample, swaps, strict=True)
        part = {survey.key(*each): each for each, is_swapped in pairs if is_swapped == judge.swaps}
        for name, mutant in drawn:
            if survey.key(name, mutant) in part and time.monotonic() < until:
                results.append(judge(name, mutant))
                survey.save(results, saved)
        results = judge.controlled(results, part)
        survey.save(results, saved)
    if len(results) < len(sample):
        print("expected to try all mutants of the sample; those left are not like those tried.")
    print("\n" + survey.report(results, len(population)))
    return 0


class _Judge:
    """Runs tests on mutants.

    Args:
        found: the tests of each line.
        budget: the seconds of more tests for a mutant that survives the first ones, and of all their
            cases for one that survives those; 0 without them.

    Attributes:
        swaps: put mutants into modules that are imported already. False imports them instead, which is
            not possible any more after a swap.
    """

    def __init__(self, found: Lines, budget: float) -> None:
        self._found, self._budget = found, budget
        self._without: set[str] = set()
        self._is_imported = False
        self.swaps = False

    def __call__(self, name: str, mutant: Mutant) -> Result:
        start = time.monotonic()
        outcome = self._outcome(name, mutant)
        text = f"{outcome.result} in {time.monotonic() - start:.0f} s: {mutant}"
        print(text.replace(f"{ROOT}/", "") if outcome.result != KILLED else ".", flush=True)
        return Result(*survey.key(name, mutant), *outcome)

    def controlled(
        self, results: list[Result], part: Mapping[Key, tuple[str, Mutant]]
    ) -> list[Result]:
        """Try again, without them, the mutants killed by tests that fail without a mutant too."""
        killers = sorted(
            {each.test for each in results if each.key in part and each.test is not None}
        )
        failing = failures(
            killers, _limit((self._found.seconds.get(test, 1.0) for test in killers), None)
        )
        self._without |= set(failing)
        for index, each in enumerate(results):
            if each.key in part and each.test in failing:
                print(f"fails without a mutant: {each.test}", flush=True)
                results[index] = self(*part[each.key])
        return results

    def _outcome(self, name: str, mutant: Mutant) -> Outcome:
        lines_of = (mutant.line, mutant.last)
        nearest, is_traced = self._found.tests_of(mutant.path, lines_of, mutant.scope)
        tests = _spread([test for test in nearest if test not in self._without])
        seconds = self._found.seconds
        install, nothing = self._installers(name, mutant)
        outcome = Outcome(NOT_RUN)
        first = _within({test: seconds[test] for test in tests}, FIRST)
        others = {test: seconds[test] for test in _by_file(tests) if test not in first}
        stages: list[tuple[dict[str, float], int | None]] = []
        if is_traced:
            stages.append((first, lines.EXAMPLES))
        ran = set(first) if is_traced else set()
        if is_traced and self._budget > 0:
            more = _within(others, self._budget)
            ran |= set(more)
            stages.append((more, lines.EXAMPLES))
        if self._budget > 0:
            # All cases of the functions, and as many examples of a property as it asks for.
            stages.append((_within(self._found.whole(tests, ran), self._budget), None))
        for chosen, examples in stages:
            if chosen and outcome.result in (NOT_RUN, SURVIVED):
                given = [*chosen, *(f"--deselect={test}" for test in self._without)]
                limit = _limit(chosen.values(), examples)
                outcome = trial(install, given, limit, examples)
                if outcome == Outcome(KILLED) or outcome.result == TIMED_OUT:
                    # No test failed: the process crashed, or was stopped. Does it without the mutant?
                    control = trial(nothing, given, limit, examples)
                    if control == Outcome(KILLED):
                        raise RuntimeError(f"expected tests that pytest can run, got {chosen}")
                    if control.result == TIMED_OUT:
                        outcome = Outcome(SURVIVED)
        # Files of tests nearest to the function, those with marks too. They were not traced.
        files = relatives(name, mutant.function) if self._budget > 0 else []
        if files and outcome.result in (NOT_RUN, SURVIVED):
            given = [*files, *(f"--deselect={test}" for test in self._without)]
            judged = trial(install, given, 2 * self._budget, marks="")
            if judged.test is not None:
                return judged
        return outcome

    def _installers(self, name: str, mutant: Mutant) -> tuple[Callable[[], object], ...]:
        """Return functions that put the mutant into a process, and its original."""
        here = imported(name), mutant.path

        def pass_on() -> None:
            passed_on(*here, mutant.source, SAVED / "mutant.json")

        if self.swaps:
            if not self._is_imported:
                import_tests(judges())
                self._is_imported = True
            functions = functions_of(changed_functions(mutant))
            return lambda: (swap(functions), pass_on()), lambda: None
        if self._is_imported:
            raise RuntimeError(f"expected a process that has not imported {name}, for {mutant}")
        install = importing(*here, mutant.source)
        return lambda: (install(), pass_on()), importing(*here, mutant.original)


def _within(tests: dict[str, float], seconds: float) -> dict[str, float]:
    """Return the first tests that together take so many seconds, without those that take too long.

    The fastest one alone if all of them take longer.
    """
    chosen: dict[str, float] = {}
    left = seconds
    for test, needed in tests.items():
        if needed <= left:
            chosen[test] = needed
            left -= needed
    return chosen or dict(sorted(tests.items(), key=lambda each: each[1])[:1])


def _limit(seconds: Iterable[float], examples: int | None) -> float:
    """Return the seconds of a processor that tests may take: four times as many for all examples."""
    return 20 + PATIENCE * (1 if examples else 4) * sum(seconds)


def _by_file(tests: list[str]) -> list[str]:
    """Return tests in an order that takes one of each file, then a second one, and so on."""
    return _in_turns(tests, "::")


def _spread(tests: list[str]) -> list[str]:
    """Return tests in an order that takes one case of each function, then a second one, and so on."""
    return _in_turns(tests, "[")


def _in_turns(tests: list[str], separator: str) -> list[str]:
    before: dict[str, int] = Counter()
    turns = []
    for test in tests:
        group = test.partition(separator)[0]
        turns.append((before[group], test))
        before[group] += 1
    return [test for _, test in sorted(turns, key=lambda turn: turn[0])]


def _source(path: Path) -> tuple[str, str]:
    return str(path), path.read_text()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="modules, such as step or random.keys; else all")
    parser.add_argument("--sample", type=int, help="the number of mutants to draw; else all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument(
        "--budget",
        type=float,
        default=60.0,
        help="seconds of a processor for more tests of a mutant that survives the first ones",
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many")
    parser.add_argument(
        "--survivors", action="store_true", help="keep what the last call killed, try the others"
    )
    parser.add_argument("--resume", action="store_true", help="keep what the last call tried")
    parser.add_argument(
        "--imported", action="store_true", help="import every mutant, to see what runs at import"
    )
    parser.add_argument("--again", action="store_true", help="trace the tests anew")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
