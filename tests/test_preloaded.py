"""Test that preloaded processes do what new interpreters do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import preloaded
from tests.campaign import CAMPAIGN

PROGRAM = """
import multiprocessing, os, signal, sys, torch
print(__name__, os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), sys.stdin.read())
print(os.environ["HERE"], len(os.environ))
print(multiprocessing.get_start_method(), signal.getsignal(signal.SIGINT), torch.get_num_threads())
print("said", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("command", [["-c", PROGRAM], ["-m", "program"], ["program.py"]])
def test_process_with_torch_preloaded_prints_the_output_of_a_new_interpreter(
    command: list[str], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "HERE": "there"}
    command = [*command, "one", "--two"]
    new = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    found = preloaded.run(*command, cwd=tmp_path, env=environment, check=False)
    assert (new.returncode, new.stderr) == (3, "said\n")
    assert (found.returncode, found.stdout, found.stderr) == (3, new.stdout, new.stderr)


def test_process_with_torch_preloaded_reads_and_writes_pipes_and_receives_signals() -> None:
    program = "import sys, time; print(sys.stdin.readline(), flush=True); time.sleep(600)"
    with preloaded.start(
        "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == "hello\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
        process.kill()  # it has ended


@pytest.mark.skipif(CAMPAIGN, reason="a campaign starts new interpreters")
def test_preloaded_process_starts_with_torch_imported_and_a_single_thread() -> None:
    os.environ["FTRAIN_TEST_PRELOADED"] = "seen"
    try:
        program = (
            "import os, sys, threading\n"
            "print(os.environ.get('FTRAIN_TEST_PRELOADED'), threading.active_count(),\n"
            "      [name in sys.modules for name in ('torch', 'ftrain.loop', 'tests.zoo', 'jax')])"
        )
        done = preloaded.run("-c", program)
    finally:
        del os.environ["FTRAIN_TEST_PRELOADED"]
    assert done.stdout == "seen 1 [True, True, False, False]\n"


def test_failed_preloaded_process_is_reported_with_its_output() -> None:
    with pytest.raises(AssertionError, match=r"(?s)exit code 1.*before.*ZeroDivisionError"):
        preloaded.run("-c", "print('before'); 1 / 0")
