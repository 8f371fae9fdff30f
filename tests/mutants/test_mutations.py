"""Mutants change what runs, one thing at a time; a failing test kills them."""

from __future__ import annotations

import ast
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.mutants import lines, trial
from tests.mutants.__main__ import _by_file, _spread, _within
from tests.mutants.harmless import HARMLESS, STRICT, reason
from tests.mutants.lines import BETWEEN_TESTS, Lines, with_own_lines
from tests.mutants.mutations import mutants
from tests.mutants.subjects import ROOT, relatives, subjects
from tests.mutants.survey import NOT_RUN, Result, interval, report
from tests.mutants.swap import changed_functions, functions_of, swap, swappable
from tests.mutants.trial import KILLED, SURVIVED, WithoutShrinking

FILE = 1, 1000

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


def test_a_float_so_large_that_adding_one_keeps_its_value_has_no_mutant() -> None:
    assert [each.change for each in mutants("large.py", "x, y = 1e150, 2.5")] == ["2.5 becomes 3.5"]


def test_source_of_a_mutant_is_the_whole_module_with_its_change() -> None:
    last = mutants("clip.py", SOURCE)[-1]
    scope: dict[str, object] = {}
    exec(compile(last.source, "clip.py", "exec"), scope)
    assert scope["clipped"](5) == 2  # type: ignore[operator]


def test_line_that_runs_at_import_is_covered_by_all_tests_that_run_its_file() -> None:
    found = Lines({"a.py": {1: [BETWEEN_TESTS], 2: ["slow", "fast"]}}, {"slow": 2.0, "fast": 1.0})
    assert found.tests_of("a.py", (1, 1), FILE) == (["fast", "slow"], False)
    found.lines["b.py"] = {1: ["fast"]}
    again = Lines(found.lines, found.seconds)
    # The fast one runs lines of another file, too.
    assert again.tests_of("a.py", (1, 1), FILE) == (["slow", "fast"], False)
    assert found.tests_of("c.py", (1, 1), FILE) == ([], False)


def test_line_without_a_recorded_test_gets_the_tests_of_its_function_first() -> None:
    lines = {"a.py": {2: ["near"], 3: ["near"], 4: ["far"], 5: ["def"]}, "b.py": {1: ["near"]}}
    found = Lines(lines, {"near": 2.0, "far": 1.0, "def": 1.0})
    assert found.tests_of("a.py", (3, 3), (1, 3)) == (["near"], True)
    assert found.tests_of("a.py", (6, 6), (5, 7)).is_traced is False
    assert found.tests_of("a.py", (1, 1), (1, 3)) == (["near", "def", "far"], False)
    # The line of a `def` runs where the module is imported, or around it.
    assert found.tests_of("a.py", (6, 6), (5, 7)) == found.tests_of("a.py", (6, 6), (6, 7))


def test_parametrized_cases_that_cover_no_new_line_are_left_out() -> None:
    lines = {"a.py": {1: ["t[1]", "t[2]", "t[3]", "u"], 2: ["t[3]"]}, "b.py": {1: ["t[2]", "t[3]"]}}
    assert with_own_lines(lines, ["t[1]", "t[2]", "t[3]", "u"]) == {"t[1]", "t[2]", "t[3]", "u"}
    assert with_own_lines(lines, ["t[3]", "t[1]", "t[2]", "u", "v"]) == {"t[3]", "u", "v"}


def test_lines_of_a_module_that_has_changed_keep_their_tests_by_their_text(tmp_path: Path) -> None:
    before, now = "a = 1\nb = 2\nc = 3\n", "new = 0\na = 1\nb = 4\nc = 3\n"
    assert lines._moved(before, now) == {1: 2, 3: 4}
    module, saved = tmp_path / "module.py", tmp_path / "saved.json"
    module.write_text(before)
    test = str(Path(__file__).relative_to(ROOT))
    lines._write(Lines({str(module): {1: ["t"], 2: ["u"]}}, {"t": 1.0}), test, saved)
    module.write_text(now)
    found = lines._read(test, saved)
    assert found is not None
    assert found.lines == {str(module): {2: ["t"]}}
    # Docstrings are tests that change with the modules, so a folder of them is traced again.
    lines._write(Lines({str(module): {1: ["t"]}}, {"t": 1.0}), "ftrain/core", saved)
    assert lines._read("ftrain/core", saved) is not None
    module.write_text(before)
    assert lines._read("ftrain/core", saved) is None


def test_test_functions_are_run_whole_only_if_a_case_did_not_run_or_they_are_property_tests() -> (
    None
):
    seconds = {"plain": 1.0, "cases[1]": 2.0, "cases[2]": 4.0, "few[1]": 1.0, "law": 1.0}
    found = Lines({}, seconds, {"plain": 1, "cases": 2, "few": 9, "law": 1}, {"law"})
    assert found.whole(list(seconds), ran=list(seconds)) == {"few": 9.0, "law": 1.0}
    assert found.whole(["plain", "cases[1]"], ran=["cases[1]"]) == {"plain": 1.0, "cases": 4.0}


def test_test_files_of_other_folders_that_name_a_function_or_use_its_module_are_chosen() -> None:
    assert relatives("_file_output")[0] == "tests/core/test_file_output.py"
    assert "tests/distributed/test_launch.py" in relatives("_torch_stores", "tcp_store")
    # Used by a private module, which is tested through the one that imports it.
    assert "tests/distributed/test_fully_sharded.py" in relatives(
        "_torch_tensors", "has_call_hooks"
    )
    assert "tests/checkpoint/test_save.py" not in relatives("tree", "leaves")


@pytest.mark.filterwarnings("ignore:No data was collected")
def test_cases_of_a_test_are_traced_until_their_time_limit_is_reached(tmp_path: Path) -> None:
    """In a folder of its own, whose tests run no line of ftrain."""
    (tmp_path / "test_cases.py").write_text(CASES)
    found = lines._record([str(tmp_path)])
    (fast, _), (slow, _) = sorted(
        (name.partition("::")[2], n) for name, n in found["cases"].items()
    )
    assert (fast, slow) == ("test_fast", "test_slow")
    assert sorted(found["cases"].values()) == [3, 9]
    ran = (tmp_path / "ran").read_text().split()
    assert ran.count("fast") == 3
    assert 1 <= ran.count("slow") < 9


CASES = """
import time, pathlib, pytest

def ran(name):
    with open(pathlib.Path(__file__).with_name("ran"), "a") as file:
        file.write(name + " ")

@pytest.mark.parametrize("case", range(3))
def test_fast(case):
    ran("fast")

@pytest.mark.parametrize("case", range(9))
def test_slow(case):
    ran("slow")
    start = time.process_time()
    while time.process_time() < start + 0.1:
        pass
"""


def test_tests_named_after_a_module_are_chosen_before_tests_that_run_fewer_lines() -> None:
    own, other = "tests/core/test_norm.py::test_a", "tests/core/test_step.py::test_b"
    lines = {"core/_norm.py": {1: [other, own]}, "core/step.py": {1: [own], 2: [own]}}
    found = Lines(lines, {own: 2.0, other: 1.0})
    assert found.tests_of("core/_norm.py", (1, 1), FILE) == ([own, other], True)


def test_test_that_exceeds_the_time_limit_is_passed_over_for_shorter_tests() -> None:
    assert _within({"a": 2.0, "slow": 9.0, "b": 1.0, "c": 0.5}, 3.0) == {"a": 2.0, "b": 1.0}
    assert _within({"slower": 9.0, "slow": 5.0}, 3.0) == {"slow": 5.0}
    assert _within({}, 3.0) == {}


def test_tests_are_chosen_from_all_files_and_functions_in_turn() -> None:
    assert _by_file(["f::a", "f::b", "g::c"]) == ["f::a", "g::c", "f::b"]
    assert _spread(["f::a[1]", "f::a[2]", "f::b"]) == ["f::a[1]", "f::b", "f::a[2]"]


def test_process_that_computes_too_long_or_waits_is_stopped() -> None:
    assert trial.forked(lambda: {"a": 1}, 60) == {"a": 1}
    assert trial.forked(lambda: {"a": list(iter(int, 1))}, 1) == {"timeout": True}
    assert trial.forked(lambda: {"a": time.sleep(600)}, 60, idle=1.0) == {"timeout": True}
    assert trial.forked(lambda: os._exit(3), 60) == {"crashed": True}


def test_number_of_hypothesis_examples_is_limited_after_the_import_of_a_test() -> None:
    @settings(max_examples=50)
    @given(st.integers())
    def many(number: int) -> None:
        counted.append(number)

    @settings(max_examples=2)
    @given(st.integers())
    def few(number: int) -> None:
        counted.append(number)

    items = [SimpleNamespace(function=each) for each in (many, few, many)] + [SimpleNamespace()]
    WithoutShrinking(7).pytest_collection_modifyitems(items)
    for function, most in ((many, 7), (few, 2)):
        counted: list[int] = []
        function()
        assert 0 < len(counted) <= most


def test_strict_is_an_argument_of_zip_only_so_that_a_dropped_check_is_harmless() -> None:
    calls = [
        ast.unparse(node.func)
        for path in subjects().values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and any(each.arg == "strict" for each in node.keywords)
    ]
    assert set(calls) == {"zip"}
    pair = "zip(a, b, strict=True), x(True)", "zip(a, b, strict=False), x(True)"
    assert reason("norm", "f", *pair) == STRICT
    assert reason("norm", "f", pair[0], "zip(a, b, strict=True), x(False)") is None


def test_each_listed_harmless_mutant_matches_exactly_one_mutant_of_the_source() -> None:
    modules = subjects()
    named: Counter[tuple[str, str, str, str]] = Counter()
    functions = {key[:2] for key in HARMLESS}
    for module in {module for module, *_ in HARMLESS}:
        source = modules[module].read_text()
        named.update(
            (module, mutant.function, *mutant.lines)
            for mutant in mutants(str(modules[module]), source)
            if (module, mutant.function) in functions
        )
    assert [key for key in HARMLESS if named[key] != 1] == []


def test_a_mutant_is_reported_with_the_innermost_function_that_contains_it() -> None:
    source = "class A:\n  x = 1\n  def f(self):\n    return lambda: 2\ny = 3\n"
    found = {each.change[0]: (each.function, each.scope) for each in mutants("a.py", source)}
    assert found["1"] == ("A", (1, 4))
    assert found["2"] == ("A.f", (3, 4))
    assert found["3"] == ("", (1, 5))


def test_confidence_interval_contains_the_true_share_in_95_of_100_samples() -> None:
    """Wilson's interval covers the true share about as often as it says, averaged over shares."""
    held, drawn = 0, random.Random(0)
    for _ in range(2000):
        share = drawn.uniform(0.5, 1.0)
        killed = sum(drawn.random() < share for _ in range(60))
        low, high = interval(killed, 60)
        held += low <= share <= high
    assert 0.93 < held / 2000 < 0.97


def test_report_counts_harmless_and_unexplained_mutants_separately(monkeypatch) -> None:
    monkeypatch.setitem(HARMLESS, ("norm", "f", "x = 1", "x = 2"), "no one reads it")
    killed = [Result("norm", 1, "f", "a < b", "a <= b", KILLED, "test")] * 8
    alive = [
        Result("norm", 2, "f", "x = 1", "x = 2", SURVIVED),
        Result("step", 3, "f", "y", "z", NOT_RUN),
    ]
    text = report(killed + alive, 500)
    assert "10 of 500 mutants were tried" in text
    assert "killed of all: 8 of 10, 80.0%" in text
    assert "killed of all but 1 harmless ones: 8 of 9, 88.9%" in text
    assert "1 are not killed and not explained" in text
    assert "delete it" not in text
    other = Result("norm", 2, "g", "x = 1", "x = 2", SURVIVED)  # the same change elsewhere
    assert "all but 0 harmless ones" in report([other], 500)
    wrong = Result("norm", 2, "f", "x = 1", "x = 2", KILLED, "test_f")
    assert "explained as harmless, but killed by test_f; delete it" in report([wrong], 500)


def test_mutant_replaces_a_loaded_function_but_not_a_module_constant_or_a_default(
    tmp_path: Path, monkeypatch
) -> None:
    path = tmp_path / "clip_of_mutants.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import clip_of_mutants

    changed = {str(each.change): changed_functions(each) for each in mutants(str(path), SOURCE)}
    assert changed["3 becomes 4"] == []  # a constant of the module
    assert (
        changed["1 becomes 2"] == []
    )  # the default of an argument, of which the module makes a tuple
    swap(functions_of(changed["Add becomes Sub"]))
    assert clip_of_mutants.clipped(5) == 2
    swap(functions_of([(b, a) for a, b in changed["Add becomes Sub"]]))
    swap(functions_of(changed["None is returned"]))
    assert clip_of_mutants.clipped(5) is None


def test_mutants_of_functions_called_at_import_or_not_imported_are_not_swapped_in_memory(
    tmp_path: Path, monkeypatch
) -> None:
    """A swap would change nothing of a result that the import has stored."""
    (tmp_path / "ran_at_import.py").write_text(RUNS)
    (tmp_path / "not_imported.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    drawn = [
        each
        for name, source in (("ran_at_import", RUNS), ("not_imported", SOURCE))
        for each in mutants(str(tmp_path / f"{name}.py"), source)
        if each.change in ("Add becomes Sub", "Mult becomes Div")
    ]
    assert [each.function for each in drawn] == ["limit", "twice", "clipped"]
    found = swappable(drawn, "ran_at_import", lambda: None)
    assert found == [False, True, False]
    assert "ran_at_import" not in sys.modules


RUNS = """
def limit():
    return 1 + 2

def twice(x):
    return 2 * x

LIMIT = limit()
"""

TRIAL = """
import os, subprocess, sys
from pathlib import Path
from tests import preloaded
from tests.mutants.trial import KILLED, SURVIVED, failures, forked, importing, passed_on, trial

module, path = "ftrain.core._words", "ftrain/core/_words.py"
source = open(path).read()
tests = [path]

def outcome(changed):
    return trial(importing(module, path, changed), tests, 600)

assert outcome("raise RuntimeError") == (KILLED, path)
assert outcome(source) == (SURVIVED, None)
broken = outcome(source.replace("return", "return 3 or"))
assert broken.result == KILLED and broken.test.startswith(path + "::")
assert failures(tests, 600) == []

def started():
    passed_on("tests.mutants.harmless", "tests/mutants/harmless.py", "NEW = 7", Path(sys.argv[1]))
    preloaded.CONTEXT.set_forkserver_preload([])
    code = "-c", "from tests.mutants.harmless import NEW; print(NEW)"
    python = subprocess.run([sys.executable, *code], capture_output=True, text=True)
    return {"out": python.stdout + preloaded.run(*code).stdout}

assert forked(started, 600) == {"out": "7\\n7\\n"}
"""


def test_trial_runs_the_tests_with_the_mutant_instead_of_the_module(tmp_path: Path) -> None:
    """In a process of its own: a mutant is tried in a fork of one that has not imported ftrain."""
    arguments = [sys.executable, "-W", "ignore", "-c", TRIAL, str(tmp_path / "mutant.json")]
    subprocess.run(arguments, cwd=Path(__file__).parents[2], check=True)
