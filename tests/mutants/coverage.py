"""The tests that run each line of `ftrain/core`, found by tracing them once."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.mutants.trial import forked, run_pytest

__all__ = ["Coverage", "record"]

ROOT = Path(__file__).parents[2]
CORE = str(ROOT / "ftrain" / "core") + "/"
AT_IMPORT = ""


@dataclass(frozen=True)
class Coverage:
    """Lines and the tests that run them.

    Attributes:
        lines: the tests of each line of each file; `AT_IMPORT` for one that runs at import.
        seconds: the duration of each test that passed.
    """

    lines: dict[str, dict[int, list[str]]]
    seconds: dict[str, float]

    def tests_of(self, path: str, first: int, last: int) -> list[str]:
        """Return the tests that run a range of lines, the fastest first."""
        of_file = self.lines.get(path, {})
        found = {test for line in range(first, last + 1) for test in of_file.get(line, ())}
        if AT_IMPORT in found:
            found |= {test for tests in of_file.values() for test in tests}
        return sorted(found & self.seconds.keys(), key=lambda test: self.seconds[test])


def record(tests: Sequence[str], timeout: float) -> Coverage:
    """Run tests in a forked process; return the lines that they run."""
    found: dict[str, Any] = forked(lambda: _record(tests), timeout)
    if "lines" not in found:
        raise RuntimeError(f"expected the tests to run, got {found}: {' '.join(tests)}")
    return _from_json(found)


def merged(parts: Sequence[Coverage]) -> Coverage:
    lines: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part in parts:
        for path, of_file in part.lines.items():
            for line, tests in of_file.items():
                lines[path][line] += tests
    return Coverage(lines, {test: s for part in parts for test, s in part.seconds.items()})


def save(coverage: Coverage, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"lines": coverage.lines, "seconds": coverage.seconds}))


def load(path: Path) -> Coverage:
    return _from_json(json.loads(path.read_text()))


def _from_json(found: dict[str, Any]) -> Coverage:
    lines = {p: {int(n): t for n, t in of.items()} for p, of in found["lines"].items()}
    return Coverage(lines, found["seconds"])


def _record(tests: Sequence[str]) -> dict[str, Any]:
    tracer = _Tracer()
    sys.settrace(tracer.on_call)
    threading.settrace(tracer.on_call)
    try:
        run_pytest(tests, [tracer])
    finally:
        sys.settrace(None)
    lines: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for test, path, line in sorted(tracer.seen):
        lines[path][line].append(test)
    return {"lines": lines, "seconds": tracer.seconds}


class _Tracer:
    """Plugin of pytest, and trace function, that notes the test in which a line runs."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str, int]] = set()
        self.seconds: dict[str, float] = {}
        self._test = AT_IMPORT

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[Any]:
        self._test = item.nodeid
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.perf_counter() - start
            self._test = AT_IMPORT

    def pytest_runtest_logreport(self, report: Any) -> None:
        if not report.passed:
            self.seconds.pop(report.nodeid, None)

    def on_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(CORE):
            return None
        self.seen.add((self._test, name, frame.f_lineno))
        return self._on_line

    def _on_line(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.seen.add((self._test, frame.f_code.co_filename, frame.f_lineno))
        return self._on_line
