"""Test the pytest plugin: collection of subjects, messages of violated laws, and fixtures."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ftrain import testing
from ftrain.testing import deterministic, subject

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
INSTALLED = any(
    entry.name == "ftrain" for entry in importlib.metadata.entry_points(group="pytest11")
)
PLUGIN = ("-p", "ftrain" if INSTALLED else "ftrain.testing.plugin", "-p", "no:cacheprovider")

MODEL = """
import torch
from ftrain import make_steps, optim
from ftrain.testing import subject

def loss_fn(model, batch):
    return model(batch).square().mean()

"""

GOOD = """
@subject
def regression():
    return make_steps(lambda: torch.nn.Linear(2, 1), loss_fn, optim.sgd(0.1)), [torch.ones(3, 2)] * 2
"""

IMPURE = """
@subject
def impure():
    def step(state, batch):
        state["w"].sub_(batch.sum())
        return {"w": state["w"] + 0}, {"loss": state["w"].sum()}
    return step, [torch.ones(2)] * 2, {"state": {"w": torch.zeros(2)}}
"""


@pytest.fixture(autouse=True, scope="module")
def _inductor_is_imported() -> None:
    """Pytester forgets modules that a run imports, and inductor can be imported only once."""
    with deterministic():  # torch imports inductor's configuration
        pass


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*PLUGIN, *arguments)


def test_package_metadata_lists_the_pytest_plugin_and_its_requirements() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"ftrain": "ftrain.testing.plugin"}
    names = {each.partition(">")[0] for each in project["optional-dependencies"]["testing"]}
    assert names == {"hypothesis", "pytest"}


def test_plugin_imports_neither_torch_nor_hypothesis() -> None:
    script = (
        "import sys, ftrain.testing.plugin\n"
        "print([name for name in ('torch', 'hypothesis', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_ftrain_testing_subject_is_a_function_even_if_only_the_plugin_was_imported_before() -> None:
    script = (
        "import ftrain.testing.plugin\n"  # as pytest does, before any test module
        "from ftrain.testing import subject\n"
        "print(callable(subject))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"


def test_laws_are_not_checked_without_the_option(pytester) -> None:
    pytester.makepyfile(MODEL + GOOD + IMPURE + "\ndef test_one():\n    pass\n")
    run(pytester).assert_outcomes(passed=1)


def test_each_subject_is_one_test_item_whose_failure_shows_the_violation(pytester) -> None:
    pytester.makepyfile(test_two=MODEL + GOOD + IMPURE)
    result = run(pytester, "--ftrain-laws", "-rA")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "ftrain: the laws of all Steps are checked (--ftrain-laws)",
            "*test_two.impure*",
            'law "pure": *',
            "*remedy: *",
            "*pure *passed*",
            "PASSED test_two.py::laws[[]regression[]]",
            "FAILED test_two.py::laws[[]impure[]]*",
        ]
    )
    assert "Traceback" not in result.stdout.str()


def test_plugin_checks_steps_of_a_test_module_on_the_batches_of_that_module(pytester) -> None:
    steps = "make_steps(lambda: torch.nn.Linear(2, 1), loss_fn, optim.sgd(0.1))\n"
    pytester.makepyfile(
        test_three=f"{MODEL}first = {steps}second = {steps}"
        "batches = [torch.ones(3, 2)]\nsecond_batches = [torch.zeros(4, 2)]\n"
    )
    result = run(pytester, "--ftrain-laws", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*laws[[]first[]] PASSED*", "*laws[[]second[]] PASSED*"])


def test_steps_without_batches_fail_with_the_remedy(pytester) -> None:
    pytester.makepyfile(
        MODEL + "steps = make_steps(lambda: torch.nn.Linear(2, 1), loss_fn, optim.sgd(0.1))\n"
    )
    result = run(pytester, "--ftrain-laws")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*expected a global variable `batches` for these Steps*"])


def test_subject_that_does_not_return_a_pair_fails_with_the_remedy(pytester) -> None:
    pytester.makepyfile(MODEL + "@subject\ndef wrong():\n    return 3\n")
    result = run(pytester, "--ftrain-laws")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*wrong: expected a function that returns (steps, batches)*got int*"]
    )


def test_modules_of_the_ini_option_are_checked_and_can_be_deselected(pytester) -> None:
    pytester.makepyfile(package_of_mine=MODEL + GOOD + IMPURE)
    pytester.makeini("[pytest]\nftrain_subjects =\n    package_of_mine\npythonpath = .\n")
    pytester.makepyfile(test_five="def test_one():\n    pass\n")
    run(pytester, "--ftrain-laws").assert_outcomes(passed=2, failed=1)
    run(pytester, "--ftrain-laws", "-k", "regression").assert_outcomes(passed=1, deselected=2)


def test_subject_that_is_imported_elsewhere_is_checked_once(pytester) -> None:
    pytester.makepyfile(subjects_of_mine=MODEL + GOOD)
    pytester.makeini(
        "[pytest]\nftrain_subjects =\n    subjects_of_mine:regression\npythonpath = .\n"
    )
    pytester.makepyfile(test_six="from subjects_of_mine import regression\n")
    result = run(pytester, "--ftrain-laws", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["test_six.py::laws[[]regression[]] PASSED*"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("no_such_module_at_all", "*expected a module that can be imported*"),
        ("os.path", "*expected Steps, or functions marked*"),
        ("os:no_such_name", "*expected an attribute of os, got 'no_such_name'*"),
    ],
)
def test_ini_option_refuses_modules_without_subjects(pytester, entry, message) -> None:
    pytester.makeini(f"[pytest]\nftrain_subjects = {entry}\n")
    pytester.makepyfile("def test_one():\n    pass\n")
    result = run(pytester, "--ftrain-laws")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_key_fixture_depends_only_on_the_name_of_the_test(pytester) -> None:
    pytester.makepyfile(
        test_seven="""
        keys = []

        def test_one(ftrain_key):
            keys.append(ftrain_key.tolist())

        def test_two(ftrain_key):
            keys.append(ftrain_key.tolist())
            assert keys[0] != keys[1]
            assert keys == KEYS
        """.replace("KEYS", str(KEYS))
    )
    run(pytester).assert_outcomes(passed=2)


# sha256 of "test_seven.py::test_one" and "test_seven.py::test_two", the first 8 bytes as two words.
KEYS = [[-729532610, 1424363458], [-1775695830, -1744569725]]


def test_deterministic_fixture_seeds_and_restores_the_generators(pytester) -> None:
    pytester.makepyfile(
        """
        import torch

        drawn = []

        def test_one(ftrain_deterministic):
            assert torch.are_deterministic_algorithms_enabled()
            drawn.append(torch.rand(2).tolist())

        def test_two(ftrain_deterministic):
            assert torch.rand(2).tolist() == drawn[0]

        def test_three():
            assert not torch.are_deterministic_algorithms_enabled()
        """
    )
    run(pytester).assert_outcomes(passed=3)


def test_isolated_fixture_fails_a_test_that_changes_global_state(pytester) -> None:
    pytester.makepyfile(
        """
        import torch

        def test_one(ftrain_isolated):
            torch.rand(2)

        def test_two(ftrain_isolated):
            torch.ones(2) + 1
        """
    )
    result = run(pytester)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        ["*the test changed global state: random state of torch. Restore it*"]
    )


def test_no_public_name_of_testing_is_also_the_name_of_a_submodule() -> None:
    folder = Path(testing.__file__).parent
    modules = {path.stem for path in folder.iterdir()} - {"machine", "strategies"}
    assert not modules & {*testing.__all__}


def test_subject_returns_the_function_that_it_marks() -> None:
    def made() -> None: ...

    assert subject(made) is made
