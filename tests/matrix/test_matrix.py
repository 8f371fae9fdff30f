"""The matrix of versions: its page equals the recorded outcomes, and every cell is accounted for."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix import __main__ as program
from tests.matrix import cells, environment, page, quick
from tests.matrix.cells import Cell, Outcomes

RAN = Cell("3.12", "newest", "2026-01-02", "", "3.12.1", "2.14.1", 900, 1, 3, 300, ("a.py::b",))


def test_version_page_equals_the_page_rendered_from_the_recorded_outcomes() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.written(text) == text, "run: python -m tests.matrix.page"


def test_outcomes_are_equal_after_writing_and_reading_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    outcomes = Outcomes("A (family 1 model 2)", 2).with_cell(RAN)
    cells.write(outcomes)
    assert outcomes.path.name == "matrix-a-family-1-model-2-2-cores.json"
    assert cells.recorded() == [outcomes]


def test_version_page_lists_each_recorded_pair_of_versions_and_each_failure() -> None:
    missing = Cell("3.13", "2.11", "2026-01-02", reason="no python3.13 on PATH")
    text = page.section(Outcomes("A", 2).with_cell(RAN).with_cell(missing))
    assert [line for line in text.splitlines() if line.startswith("| 3.")] == [
        "| 3.12.1 | 2.14.1, the newest | 900 | 1 | 3 | 5 | 2026-01-02 |",
        "| 3.13 | 2.11 | not run: no python3.13 on PATH | | | | 2026-01-02 |",
    ]
    assert text.endswith("- `a.py::b`\n")


def test_version_page_names_the_usual_pairs_of_versions_that_were_not_run() -> None:
    reason = "no python3.13 on PATH"
    ran = {
        (python, torch): dataclasses.replace(RAN, python=python, torch=torch)
        for python in cells.PYTHONS
        for torch in cells.TORCHES
    }
    whole = Outcomes("B", 2, tuple(ran.values()))
    assert page.without_outcome([Outcomes("A", 2), whole]) == ""
    ran["3.13", "2.11"] = Cell("3.13", "2.11", "2026-01-02", reason=reason)
    line = page.without_outcome([Outcomes("A", 2), Outcomes("B", 2, tuple(ran.values()))])
    assert line == "Not run on any processor: Python 3.13 with torch 2.11.\n"
    assert page.without_outcome([]).count(" with torch ") == len(ran)


def test_version_page_shows_the_command_that_runs_the_quick_tests() -> None:
    words = shlex.split(page.command().replace("\\\n", " "))
    assert words == ["pytest", *quick.ARGUMENTS]


def test_new_outcome_with_finished_tests_replaces_the_outcome_of_the_same_versions() -> None:
    again = dataclasses.replace(RAN, passed=901, failed=0, failures=())
    missing = Cell("3.12", "newest", "2026-01-03", reason="not installed")
    assert Outcomes("A", 2).with_cell(missing).with_cell(RAN).cells == (RAN,)
    assert Outcomes("A", 2).with_cell(RAN).with_cell(missing).cells == (RAN,)
    assert Outcomes("A", 2).with_cell(RAN).with_cell(again).cells == (again,)


def test_outcomes_of_the_version_matrix_are_sorted_by_version() -> None:
    keys = [("3.9", "2.11"), ("3.11", "2.9"), ("3.11", "2.11"), ("3.11", "newest")]
    outcomes = Outcomes("A", 2)
    for python, torch in reversed(keys):
        outcomes = outcomes.with_cell(Cell(python, torch, ""))
    assert [(cell.python, cell.torch) for cell in outcomes.cells] == keys


def test_version_constraints_equal_the_development_constraints_except_that_of_torch() -> None:
    kept = environment.constraints_without_torch().splitlines()
    lines = (cells.ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if line not in kept] == [
        line for line in lines if line.startswith("torch==")
    ]


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


def test_python_interpreter_is_found_by_its_file_path() -> None:
    assert environment.find_python(sys.executable) == (sys.executable, platform.python_version())


def test_interpreter_is_found_in_pyenv_if_the_one_on_the_path_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyenv's shim of a version that is not active fails; the newest installed patch is taken."""
    script(tmp_path / "shims" / "python3.12", "exit 127\n")
    for version in ("3.12.9", "3.12.10", "3.11.7"):
        script(tmp_path / "versions" / version / "bin" / "python", f"echo {version}\n")
    monkeypatch.setenv("PATH", str(tmp_path / "shims"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    for name in ("3.12", "python3.12"):
        found = environment.find_python(name)
        assert found is not None
        assert (found.version, found.minor) == ("3.12.10", "3.12")
    assert environment.find_python("3.13") is None


def test_missing_interpreter_gives_an_outcome_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "find_python", lambda name: None)
    cell = program.run_cell("3.12", "newest", keep=False)
    assert (cell.reason, cell.started) == ("no python3.12 on PATH or in pyenv", False)


def test_pytest_run_over_the_time_limit_is_interrupted_and_its_finished_tests_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.xml"

    class Endless:
        """A pytest that writes its report once it is interrupted."""

        def __init__(self, command: list[str], **_: object) -> None:
            assert f"--junitxml={report}" in command
            self.interrupted = False

        def wait(self, seconds: float) -> int:
            if not self.interrupted:
                raise subprocess.TimeoutExpired("pytest", seconds)
            return 2

        def send_signal(self, number: int) -> None:
            assert number == signal.SIGINT
            self.interrupted = True
            report.write_text('<testsuites><testcase file="a.py" name="b"/></testsuites>')

        def kill(self) -> None: ...

    monkeypatch.setattr(subprocess, "Popen", Endless)
    outcome = quick.run(Path("python"), report)
    assert outcome["reason"] == f"stopped after {quick.LIMIT // 60} minutes"
    assert (outcome["passed"], outcome["failed"]) == (1, 0)


def test_counts_of_passed_and_failed_tests_are_read_from_pytests_report() -> None:
    text = """<testsuites><testsuite>
    <testcase file="tests/a.py" name="passes"/>
    <testcase file="tests/a.py" name="fails[1]"><failure/></testcase>
    <testcase file="tests/a.py" name="fails[1]"><error/></testcase>
    <testcase file="tests/a.py" name="skips"><skipped/></testcase>
    <testcase classname="" name="tests.b"><error message="collection failure"/></testcase>
    </testsuite></testsuites>"""
    assert quick.read_report(text) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": ("tests/a.py::fails[1]", "tests.b"),
    }


@pytest.mark.parametrize("name", quick.QUICK)
def test_every_test_of_the_quick_selection_exists(name: str) -> None:
    path, _, function = name.partition("::")
    assert (cells.ROOT / path).exists()
    assert not function or f"def {function}(" in (cells.ROOT / path).read_text()
