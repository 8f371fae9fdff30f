"""The tests that run each line of `ftrain/core`, found by tracing them once."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.mutants.subjects import CORE, MARKS, ROOT
from tests.mutants.swap import import_tests
from tests.mutants.trial import WithoutShrinking, forked, is_property, run_pytest

__all__ = ["BETWEEN_TESTS", "EXAMPLES", "Lines", "Tests", "of_files", "record", "with_own_lines"]

BETWEEN_TESTS = ""
# Examples of a property that are traced: most run the same lines. A mutant that survives these is judged
# by all.
EXAMPLES = 2
# Seconds of a processor after which no more cases of a parametrized test are traced: all of them took 40
# minutes. Of those traced, the ones that run no line of their own are left out.
ENOUGH = 0.5
LONGEST = 2.0  # seconds of a processor after which a traced test is stopped: it has run its lines
LIMIT = 3600.0  # seconds of a processor to trace one file


class Tests(NamedTuple):
    """Tests that judge a mutant.

    Attributes:
        nearest: the tests, the nearest first.
        is_traced: True if they run the changed lines; False if other cases of them may.
    """

    nearest: list[str]
    is_traced: bool


@dataclass(frozen=True)
class Lines:
    """Lines and the tests that run them.

    Attributes:
        lines: the tests of each line in a function of each file; also `BETWEEN_TESTS`.
        seconds: the seconds of a processor that each test takes which passed, traced.
        cases: the number of cases of each parametrized test, of which few were traced.
        properties: the tests of which few examples were traced.
    """

    lines: dict[str, dict[int, list[str]]]
    seconds: dict[str, float]
    cases: dict[str, int] = field(default_factory=dict)
    properties: set[str] = field(default_factory=set)

    def whole(self, tests: Sequence[str], ran: Collection[str] = ()) -> dict[str, float]:
        """Return the functions of these tests, with the seconds that all of their cases take.

        Functions without further examples or cases than those that ran are left out.
        """
        functions: dict[str, list[float]] = defaultdict(list)
        for test in tests:
            functions[test.partition("[")[0]].append(self.seconds[test])
        finished = Counter(test.partition("[")[0] for test in ran)
        cases = {function: self.cases.get(function, len(of)) for function, of in functions.items()}
        return {
            function: sum(traced) / len(traced) * cases[function]
            for function, traced in functions.items()
            if function in self.properties or finished[function] < cases[function]
        }

    def tests_of(self, path: str, lines: tuple[int, int], scope: tuple[int, int]) -> Tests:
        """Return the tests that run a range of lines, the nearest first.

        If no traced case runs the lines, other cases of the same tests may: those that run the function
        around the lines come first then, and before the remaining tests of the file.

        Tests of the file by name come before others, and its docstrings. The focus of another test is
        the share of its lines that are in this file: a step's test runs most of `ftrain/core`, and
        compares little of what any one module computes.

        Args:
            path: the file.
            lines: the first and the last line.
            scope: the first and the last line of the function around them.
        """
        of_file = self.lines.get(path, {})

        def run(first: int, last: int) -> set[str]:
            tests = {test for line in range(first, last + 1) for test in of_file.get(line, ())}
            return tests & self.seconds.keys()

        found = run(*lines)
        is_traced = bool(found)
        around = found or run(scope[0] + 1, scope[1])  # the line of a `def` runs at import
        here = Counter(test for tests in of_file.values() for test in tests)
        name = Path(path).stem.strip("_")
        own = {name, f"test_{name}"}
        nearest = sorted(
            found or here.keys() & self.seconds.keys(),
            key=lambda test: (
                test not in around,
                Path(test.partition("::")[0]).stem.strip("_") not in own,
                -here[test] / self._sizes[test],
                self.seconds[test],
                test,
            ),
        )
        return Tests(nearest, is_traced)

    @cached_property
    def _sizes(self) -> Counter[str]:
        """The number of lines that each test runs."""
        return Counter(t for of in self.lines.values() for tests in of.values() for t in tests)


def of_files(files: Sequence[str], saved: Path, again: bool = False) -> Lines:
    """Return the lines that files of tests run, traced or read from the folder `saved`.

    A file is traced if it has not been, or if it has changed since; all are if `again`. Docstrings are
    traced again after each change of `ftrain/core`. The lines of a module that has changed since a file
    was traced are found by comparing both sources: a line without a counterpart counts as not traced, so
    that a mutant in it gets the tests of the function around it.
    """
    paths = {file: saved / f"{file.replace('/', '.')}.json" for file in files}
    stale = [file for file, path in paths.items() if again or _read(file, path) is None]

    def trace() -> dict[str, Any]:
        import_tests(stale)
        for file in stale:
            _write(record([file]), file, paths[file])
        return {"code": 0}

    if stale:
        print(f"tracing {len(stale)} files into {saved}", flush=True)
        found = forked(trace, LIMIT, idle=math.inf)  # it waits for forks of its own
        if found.get("code") != 0:
            raise RuntimeError(f"expected to trace all files, got {found}. Run one with pytest.")
    parts = [_read(file, path) for file, path in paths.items()]
    if None in parts:
        raise RuntimeError("expected no file to change while it is traced. Run it again.")
    return _merged([part for part in parts if part is not None])


def record(tests: Sequence[str]) -> Lines:
    """Run tests in a forked process; return the lines of functions that they run."""
    found = forked(lambda: _record(tests), LIMIT)
    expected = pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED
    if found.get("code") not in expected:
        raise RuntimeError(f"expected the tests to run, got {str(found)[:200]}: {' '.join(tests)}")
    return _from_json(found)


def _merged(parts: Sequence[Lines]) -> Lines:
    lines: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part in parts:
        for path, of_file in part.lines.items():
            for line, tests in of_file.items():
                lines[path][line] += tests
    seconds = {test: s for part in parts for test, s in part.seconds.items()}
    cases = {f: n for part in parts for f, n in part.cases.items()}
    return Lines(lines, seconds, cases, {f for part in parts for f in part.properties})


def _read(file: str, path: Path) -> Lines | None:
    """Return what was saved; None if there is nothing, or if the file has changed since."""
    if not path.exists():
        return None
    saved = json.loads(path.read_text())
    found, digests, test = _from_json(saved), saved["digests"], ROOT / file
    changed = [name for name, digest in digests.items() if _digest(Path(name)) != digest]
    if str(test) in changed or (changed and test.is_dir()):
        return None
    for name in changed:
        source = _source(path.parent, digests[name])
        if not source.exists():
            return None
        now = Path(name).read_text() if Path(name).exists() else ""
        moved = _moved(source.read_text(), now)
        of_file = found.lines.pop(name)
        found.lines[name] = {moved[line]: of_file[line] for line in of_file.keys() & moved.keys()}
    return found


def _moved(before: str, now: str) -> dict[int, int]:
    """Return the number that each line of a source has now, for lines that are still there."""
    lines = before.splitlines(), now.splitlines()
    blocks = difflib.SequenceMatcher(None, *lines, autojunk=False).get_matching_blocks()
    return {a + i + 1: b + i + 1 for a, b, size in blocks for i in range(size)}


def _write(found: Lines, file: str, path: Path) -> None:
    names = [str(ROOT / file), *found.lines]
    content = {
        "digests": {name: _digest(Path(name)) for name in names},
        "lines": found.lines,
        "seconds": found.seconds,
        "cases": found.cases,
        "properties": sorted(found.properties),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for name in found.lines:
        source = _source(path.parent, content["digests"][name])
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(Path(name).read_bytes())


def _source(saved: Path, digest: str) -> Path:
    """Return the file that keeps a source of `ftrain/core` as it was when tests were traced."""
    return saved / "sources" / f"{digest}.py"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _from_json(found: dict[str, Any]) -> Lines:
    lines = {p: {int(n): t for n, t in of.items()} for p, of in found["lines"].items()}
    return Lines(lines, found["seconds"], found["cases"], set(found["properties"]))


def _record(tests: Sequence[str]) -> dict[str, Any]:
    import coverage

    tracer = coverage.Coverage(
        data_file=None, config_file=False, source=[str(CORE)], messages=False
    )
    contexts = _Contexts(tracer)
    tracer.start()
    try:
        code = run_pytest(["-m", MARKS, *tests], [WithoutShrinking(EXAMPLES), contexts])
    finally:
        tracer.stop()
    data = tracer.get_data()
    lines = {path: data.contexts_by_lineno(path) for path in data.measured_files()}
    kept = with_own_lines(lines, contexts.seconds)
    seconds = {test: contexts.seconds[test] for test in kept}
    kept.add(BETWEEN_TESTS)
    for of_file in lines.values():
        for line, tests in of_file.items():
            of_file[line] = [test for test in tests if test in kept]
    counted = {"cases": contexts.cases, "properties": contexts.properties}
    return {"code": code, "lines": lines, "seconds": seconds, **counted}


def with_own_lines(
    lines: Mapping[str, Mapping[int, Sequence[str]]], tests: Iterable[str]
) -> set[str]:
    """Return the tests that run a line which no earlier case of the same function runs."""
    ran: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for path, of_file in lines.items():
        for line, contexts in of_file.items():
            for test in contexts:
                ran[test].add((path, line))
    before: dict[str, set[tuple[str, int]]] = defaultdict(set)
    kept = set()
    for test in tests:
        function = test.partition("[")[0]
        if function not in before or not ran[test] <= before[function]:
            kept.add(test)
        before[function] |= ran[test]
    return kept


def _processor_time() -> float:
    """Return the seconds that this process and its children have computed, on a busy machine too."""
    return sum(os.times()[:4])


class _Contexts:
    """Plugin of pytest that names the test in which lines run, and measures its duration."""

    def __init__(self, tracer: Any) -> None:
        self.seconds: dict[str, float] = {}
        self.cases: dict[str, int] = {}
        self.properties: list[str] = []
        self._spent: Counter[str] = Counter()
        self._tracer = tracer
        self._failed = self._stopped = False

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Shuffle the cases of each function, since the first ones may be alike."""
        of_function: dict[str, list[Any]] = defaultdict(list)
        for item in items:
            of_function[item.nodeid.partition("[")[0]].append(item)
        self.cases = {function: len(cases) for function, cases in of_function.items()}
        self.properties = [name for name, cases in of_function.items() if is_property(cases[0])]
        draw = random.Random(0)
        items[:] = [
            item for cases in of_function.values() for item in draw.sample(cases, len(cases))
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: Any) -> None:
        """Leave out further cases of a function that has computed long enough."""
        if self._spent[item.nodeid.partition("[")[0]] > ENOUGH:
            pytest.skip("enough cases are traced")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[Any]:
        self._tracer.switch_context(item.nodeid)
        self._failed = self._stopped = False
        signal.signal(signal.SIGPROF, self._stop)
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        start = _processor_time()
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._spent[item.nodeid.partition("[")[0]] += _processor_time() - start
            if self._stopped or not self._failed:
                self.seconds[item.nodeid] = (1 + self._stopped) * (_processor_time() - start)
            self._tracer.switch_context(BETWEEN_TESTS)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._failed |= not report.passed

    def _stop(self, *signal: object) -> None:
        self._stopped = True
        raise _StoppedError


class _StoppedError(BaseException):
    """Raised in a test that takes too long; no `Exception`, which a test may catch."""
