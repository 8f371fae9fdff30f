"""Mutants change what runs, one thing at a time; a failing test kills them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.mutants.coverage import AT_IMPORT, Coverage
from tests.mutants.mutations import mutants

SOURCE = '''"""Text is not changed."""

LIMIT = 3


def clipped(x: int, low: int = -1) -> int:
    """Return x, or the nearest limit."""
    if x < low and x != 0:
        raise ValueError("expected more, got less")
    print(x)
    return x + LIMIT
'''


def test_each_mutant_differs_from_the_source_by_one_change() -> None:
    found = [(each.line, each.change) for each in mutants("clip.py", SOURCE)]
    assert found == [
        (3, "3 becomes 4"),
        (6, "the sign is dropped"),
        (6, "1 becomes 2"),
        (8, "the condition is negated"),
        (8, "And becomes Or"),
        (8, "Lt becomes LtE"),
        (8, "NotEq becomes Eq"),
        (8, "0 becomes 1"),
        (10, "the call is dropped"),
        (11, "None is returned"),
        (11, "Add becomes Sub"),
    ]


def test_source_of_a_mutant_is_the_whole_module_with_its_change() -> None:
    last = mutants("clip.py", SOURCE)[-1]
    scope: dict[str, object] = {}
    exec(compile(last.source, "clip.py", "exec"), scope)
    assert scope["clipped"](5) == 2  # type: ignore[operator]


def test_line_that_runs_at_import_is_covered_by_all_tests_that_run_its_file() -> None:
    found = Coverage({"a.py": {1: [AT_IMPORT], 2: ["slow", "fast"]}}, {"slow": 2.0, "fast": 1.0})
    assert found.tests_of("a.py", 1, 1) == ["fast", "slow"]
    assert found.tests_of("a.py", 3, 3) == []


TRIAL = """
from tests.mutants.mutations import mutants
from tests.mutants.trial import KILLED, SURVIVED, trial

path = "ftrain/core/_words.py"
source = open(path).read()
test = ["ftrain/core/_words.py"]
same = mutants(path, source)[0]
broken = same.__class__(path, 1, 1, "raises", "raise RuntimeError")
whole = same.__class__(path, 1, 1, "nothing", source)
assert trial(broken, "ftrain.core._words", test, 120) == KILLED
assert trial(whole, "ftrain.core._words", test, 120) == SURVIVED
"""


def test_trial_runs_the_tests_with_the_mutant_instead_of_the_module() -> None:
    """In a process of its own: a mutant is tried in a fork of one that has not imported ftrain."""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "ignore", "-c", TRIAL], cwd=root, check=True)
