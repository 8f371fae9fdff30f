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
_FROM_TORCH = "tests/optim/test_from_torch.py"
_LBFGS = "tests/optim/test_lbfgs.py"
_ROUNDTRIP = "tests/checkpoint/test_roundtrip.py"
_THREEFRY = "tests/random/test_threefry.py"
_OPERATORS = "tests/random/test_operator_mode.py"
_SCAN = "tests/core/test_scan_gradients.py"
# Whole files where most tests are short; of the others, those that call most of torch's private code.
QUICK = (
    f"{_LAWS}::test_law_3_step_compiles_once_over_200_steps_with_schedule_and_skips",
    f"{_LAWS}::test_train_step_is_pure_and_deterministic_for_any_seed_batch_size_and_input_magnitude",
    f"{_FROM_TORCH}::test_from_torch_steps_match_the_torch_optimizer",
    f"{_FROM_TORCH}::test_compiled_from_torch_update_matches_the_eager_one",
    f"{_FROM_TORCH}::test_each_row_of_a_vmapped_from_torch_update_matches_a_single_run",
    f"{_LBFGS}::test_lbfgs_minimizes_a_quadratic_in_25_steps",
    f"{_LBFGS}::test_compiled_lbfgs_train_step_matches_eager",
    "tests/checkpoint/test_corpus.py",
    f"{_ROUNDTRIP}::test_any_tree_of_tensors_survives_a_round_trip",
    f"{_ROUNDTRIP}::test_saving_equal_states_writes_equal_bytes",
    f"{_ROUNDTRIP}::test_checkpoint_files_are_valid_safetensors",
    f"{_ROUNDTRIP}::test_loading_keeps_tied_leaves_tied",
    f"{_THREEFRY}::test_threefry_matches_the_known_answers_of_random123",
    f"{_THREEFRY}::test_bits_equal_jax",
    f"{_THREEFRY}::test_split_equals_jax",
    f"{_THREEFRY}::test_draws_of_the_c_kernel_equal_the_reference_implementation",
    f"{_THREEFRY}::test_draws_traced_on_fake_tensors_equal_eager",
    f"{_THREEFRY}::test_traced_vmapped_draws_equal_eager",
    f"{_THREEFRY}::test_draws_compiled_by_dynamo_equal_eager",
    f"{_THREEFRY}::test_threefry_operators_pass_opcheck",
    f"{_OPERATORS}::test_every_operator_tagged_as_random_is_keyed_or_refused",
    f"{_OPERATORS}::test_every_way_to_draw_inside_keyed_is_a_function_of_the_key",
    f"{_OPERATORS}::test_draw_that_cannot_use_a_key_raises_with_its_operator_and_line",
    "tests/random/test_checkpointing.py"
    "::test_gradients_with_activation_checkpointing_equal_those_without",
    "tests/core/test_step.py",
    "tests/core/test_scan.py",
    "tests/core/test_cond.py",
    "tests/core/test_while_loop.py",
    "tests/core/test_value_and_grad.py",
    "tests/core/test_nested_gradients.py",
    f"{_SCAN}::test_traced_scan_gradients_match_eager_for_carry_and_captured_tensors",
    f"{_SCAN}::test_maml_gradient_through_scan_matches_finite_differences",
    "tests/compile/test_compile.py",
    "tests/compile/test_donate.py",
    "tests/compile/test_captured.py",
    "tests/compile/test_untraceable.py",
    "tests/compile/test_errors.py",
    "tests/compile/test_strides.py",
    "tests/compile/test_lower.py",
)
ARGUMENTS = ("-q", "-m", "not inductor", *QUICK)
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
