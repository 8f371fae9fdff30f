"""Try mutants of `ftrain/core`; print those that survive, and the share that is killed."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.mutants import lines, survey
from tests.mutants.lines import EXAMPLES, Lines
from tests.mutants.mutations import Mutant, mutants
from tests.mutants.subjects import ROOT, imported, judges, subjects
from tests.mutants.survey import NOT_RUN, Result
from tests.mutants.swap import changed_functions, functions_of, import_tests, swap
from tests.mutants.trial import KILLED, SURVIVED, Outcome, failures, importing, prepare, trial

SAVED = ROOT / "build" / "mutants"
RESULTS = SAVED / "results.json"
# Tests that judge every mutant, with as many examples of each property as were traced, and at most so
# many seconds of a processor; the mutants that survive them are judged by more. Most survive none.
FIRST, SECONDS = 20, 2.0


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
    if options.resume or options.survivors:
        keys = {survey.key(name, each) for name, each in sample}
        earlier = [each for each in survey.load(RESULTS) if each.key in keys]
        results = [each for each in earlier if each.result == KILLED or not options.survivors]
        tried = {each.key for each in results}
        drawn = [(name, each) for name, each in sample if survey.key(name, each) not in tried]
    until = time.monotonic() + 60 * options.minutes
    judge = _Judge(found, options.budget, options.imported)
    # First those that must be imported, in forks of a process that has not imported ftrain.
    drawn = sorted(drawn, key=lambda each: bool(changed_functions(each[1])))
    for name, mutant in drawn:
        if time.monotonic() > until:
            print("expected to try all mutants of the sample; those left are not like those tried.")
            break
        results.append(judge(name, mutant))
        survey.save(results, RESULTS)
    results = judge.controlled(results, sample)
    survey.save(results, RESULTS)
    print("\n" + survey.report(results, len(population)))
    return 0


class _Judge:
    """Runs tests on mutants.

    Args:
        found: the tests of each line.
        budget: the seconds of tests for a mutant that survives the first ones.
        slow: import every mutant.
    """

    def __init__(self, found: Lines, budget: float, slow: bool) -> None:
        self._found, self._budget, self._slow = found, budget, slow
        self._without: set[str] = set()
        self._is_imported = False

    def __call__(self, name: str, mutant: Mutant) -> Result:
        start = time.monotonic()
        outcome = self._outcome(name, mutant)
        text = f"{outcome.result} in {time.monotonic() - start:.0f} s: {mutant}"
        print(text.replace(f"{ROOT}/", "") if outcome.result != KILLED else ".", flush=True)
        return Result(*survey.key(name, mutant), *outcome)

    def controlled(
        self, results: list[Result], sample: Sequence[tuple[str, Mutant]]
    ) -> list[Result]:
        """Try again, without them, the mutants killed by tests that fail without a mutant too."""
        killers = sorted({each.test for each in results if each.test is not None})
        failing = failures(killers, _limit(self._found.seconds.get(test, 1.0) for test in killers))
        self._without |= set(failing)
        by_key = {survey.key(name, each): (name, each) for name, each in sample}
        for index, each in enumerate(results):
            if each.test in failing:
                print(f"fails without a mutant: {each.test}", flush=True)
                results[index] = self(*by_key[each.key])
        return results

    def _outcome(self, name: str, mutant: Mutant) -> Outcome:
        found = self._found.tests_of(mutant.path, mutant.line, mutant.last)
        tests = _spread([test for test in found if test not in self._without])
        few = {test: self._found.seconds[test] for test in tests[:FIRST]}
        stages = [(_within(few, SECONDS), EXAMPLES)]
        if self._budget > SECONDS:
            stages.append((_within(self._found.whole(tests), self._budget), None))
        install, nothing = self._installers(name, mutant)
        outcome = Outcome(NOT_RUN)
        for chosen, examples in stages:
            if chosen and outcome.result in (NOT_RUN, SURVIVED):
                limit = _limit(chosen.values())
                given = [*chosen, *(f"--deselect={test}" for test in self._without)]
                judged = trial(install, given, limit, examples)
                if judged == Outcome(KILLED) == trial(nothing, given, limit, examples):
                    raise RuntimeError(f"expected tests that pytest can run, got {chosen}")
                outcome = judged
        return outcome

    def _installers(self, name: str, mutant: Mutant) -> tuple[Callable[[], None], ...]:
        """Return functions that put the mutant into a process, and its original."""
        pairs = [] if self._slow else changed_functions(mutant)
        if pairs:
            if not self._is_imported:
                import_tests(judges())
                self._is_imported = True
            functions = functions_of(pairs)
            return lambda: swap(functions), lambda: None
        if self._is_imported:
            raise RuntimeError(f"expected a process that has not imported {name}, for {mutant}")
        here = imported(name), mutant.path
        return importing(*here, mutant.source), importing(*here, mutant.original)


def _within(tests: dict[str, float], seconds: float) -> dict[str, float]:
    """Return the first tests that together take so many seconds, or the first one alone."""
    sums = itertools.accumulate(tests.values())
    count = max(1, sum(each <= seconds for each in sums))
    return dict(itertools.islice(tests.items(), count))


def _limit(seconds: Iterable[float]) -> float:
    """Return the time limit of tests, on a busy machine."""
    return 120 + 20 * sum(seconds)


def _spread(tests: list[str]) -> list[str]:
    """Return tests in an order that takes one case of each function, then a second one, and so on."""
    cases: dict[str, int] = Counter()
    turns = []
    for test in tests:
        function = test.partition("[")[0]
        turns.append((cases[function], test))
        cases[function] += 1
    return [test for _, test in sorted(turns, key=lambda turn: turn[0])]


def _source(path: Path) -> tuple[str, str]:
    return str(path), path.read_text()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="modules, such as step or random.keys; else all")
    parser.add_argument("--sample", type=int, help="the number of mutants to draw; else all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument(
        "--budget", type=float, default=120.0, help="seconds of tests for a mutant that survives"
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
