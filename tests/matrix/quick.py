"""The quick tests: those that a new torch breaks first, without machine code; minutes on one core."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from tests.matrix.cells import ROOT

_LAWS = "tests/laws/test_laws.py"
QUICK = (
    f"{_LAWS}::test_law_3_step_compiles_once_over_200_steps_with_schedule_and_skips",
    "tests/optim/test_from_torch.py",
    "tests/optim/test_lbfgs.py",
    "tests/checkpoint/test_corpus.py",
    "tests/checkpoint/test_roundtrip.py",
    "tests/random/test_threefry.py",
    "tests/random/test_operator_mode.py",
    "tests/random/test_checkpointing.py",
    "tests/core/test_step.py",
    "tests/core/test_scan.py",
    "tests/core/test_cond.py",
    "tests/core/test_while_loop.py",
    "tests/core/test_value_and_grad.py",
    "tests/core/test_nested_gradients.py",
    "tests/core/test_scan_gradients.py",
    "tests/compile",
    f"{_LAWS}::test_law_1_pure_train_step_changes_neither_inputs_nor_global_state",
)
# The slowest of compile, which repeat on ensembles and matrices what the others check.
LEFT_OUT = ("tests/compile/test_ensembles.py", "tests/compile/test_matrices.py")
ARGUMENTS = ("-q", "-m", "not inductor", *(f"--ignore={path}" for path in LEFT_OUT), *QUICK)
LIMIT = 5400
"""Seconds after which the tests of one cell are stopped."""


def run(python: Path, report: Path) -> dict[str, Any]:
    """Run the quick tests; return the fields of their `Cell`.

    Args:
        python: the interpreter of the environment.
        report: a file for pytest's report.
    """
    options = ["-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    command = [str(python), "-m", "pytest", *options, *ARGUMENTS]
    # The environment's own packages only, and the cache that tests/conftest.py makes.
    hidden = ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR")
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    start = time.monotonic()
    # A shell's background jobs ignore SIGINT, and so would their children. This program has no threads.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        preexec_fn=_heed_interrupts,  # noqa: PLW1509
    )
    try:
        code = process.wait(LIMIT)
        reason = {0: "", 1: "", 2: "interrupted"}.get(code, f"pytest ended with {code}")
    except subprocess.TimeoutExpired:
        reason = f"stopped after {LIMIT // 60} minutes"
        process.send_signal(signal.SIGINT)  # pytest reports on the tests that it has run
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
    finally:
        process.kill()
    seconds = max(1, round(time.monotonic() - start))
    counts = read_report(report.read_text(encoding="utf-8")) if report.exists() else {}
    return {"reason": reason, "seconds": seconds, **counts}


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_report(text: str) -> dict[str, Any]:
    """Return the counts and the failures in a report of pytest (JUnit's XML)."""
    passed, skipped, failures = 0, 0, []
    for case in ET.fromstring(text).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            names = (case.get("file"), case.get("name"))  # no file: the module was not imported
            failures.append("::".join(name for name in names if name))
        elif "skipped" in kinds:
            skipped += 1
        else:
            passed += 1
    failures = list(dict.fromkeys(failures))  # a test may fail, and its fixture after it
    return {
        "passed": passed,
        "failed": len(failures),
        "skipped": skipped,
        "failures": tuple(failures),
    }
