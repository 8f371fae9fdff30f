"""Test checks in new processes: they import the subject, and find faults that one process hides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ftrain import testing
from ftrain.testing.laws._processes import reference_to
from tests.testing import importable

BATCHES = [{"x": torch.randn(4, 3), "y": torch.randn(4, 1)} for _ in range(2)]
STATE = {"w": torch.zeros(3)}


def test_steps_in_a_global_variable_have_the_same_bits_in_a_new_process() -> None:
    report = testing.check_deterministic(
        importable.STEPS, BATCHES, fresh_processes=1, threads=(1, 2)
    )
    assert [row.what for row in report.rows] == [
        "3 calls of each",
        "1 thread",
        "2 threads",
        "a new process",
    ]
    report = testing.check_resume(importable.STEPS, BATCHES, fresh_process=True)
    assert report.rows[-1].what == "resumed in a new process"


def test_check_deterministic_finds_bits_that_depend_on_the_hash_seed() -> None:
    step = importable.by_hash
    batches = [torch.ones(3)]
    testing.check_deterministic(step, batches, state=STATE)
    with pytest.raises(
        testing.LawViolation, match=r"a new process gives other bits: state\['w'\]"
    ) as e:
        testing.check_deterministic(step, batches, state=STATE, fresh_processes=1)
    assert e.value.difference is not None
    assert "hash()" in str(e.value.cause)
    assert e.value.operator == "aten.add.Tensor"
    assert "importable.py" in str(e.value.line)


def test_check_resume_in_a_new_process_finds_state_kept_in_global_variables() -> None:
    batches = [torch.ones(3), torch.arange(3.0) * 2]
    importable.ONCE["mean"] = batches[0].mean()
    try:
        testing.check_resume(importable.forgets, batches, state=STATE)
        with pytest.raises(testing.LawViolation, match="resuming in a new process before step 1"):
            testing.check_resume(importable.forgets, batches, state=STATE, fresh_process=True)
    finally:
        importable.ONCE.clear()


def test_new_process_reports_its_error_and_a_subject_that_it_cannot_find() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)repeats fails failed:.*a file is missing"):
        testing.check_deterministic(
            importable.fails, [None], state=STATE, times=1, fresh_processes=1
        )
    local = lambda state, batch: (state, {})  # noqa: E731
    with pytest.raises(
        TypeError, match=r"expected steps that a new process can import.*global variable"
    ):
        testing.check_resume(local, BATCHES, state=STATE, fresh_process=True)


def test_checks_accept_a_subject_named_by_module_or_file() -> None:
    name = "tests.testing.importable:STEPS"
    assert reference_to(importable.STEPS) == name
    assert testing.check_deterministic(name, BATCHES, times=2).passed
    path = Path(importable.__file__)
    report = testing.check_deterministic(
        f"{path}:by_hash", [torch.ones(3)], state=STATE, fresh_processes=0
    )
    assert report.passed
    with pytest.raises(AttributeError, match="no global variable 'NONE'"):
        testing.check_pure("tests.testing.importable:NONE", BATCHES)
    with pytest.raises(ValueError, match="expected 'module:name'"):
        testing.check_pure("STEPS", BATCHES)


def test_program_run_as_a_script_is_found_by_new_processes(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import torch\n"
        "from ftrain import testing\n\n"
        "def step(state, batch):\n"
        "    return {'w': state['w'] + batch}, {}\n\n"
        "if __name__ == '__main__':\n"
        "    state = {'w': torch.zeros(2)}\n"
        "    print(testing.check_deterministic(\n"
        "        step, [torch.ones(2)], state=state, fresh_processes=1).passed)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "True\n", done.stderr
