"""Test that a hand-written loop, killed and run again, ends with the same final checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from tests import preloaded

SCRIPT = Path(__file__).with_name("by_hand.py")
ROOT = Path(__file__).parents[2]
STEPS = 3 * 28  # three epochs of 1,797 samples in batches of 64


def start(directory: Path) -> preloaded.Process | subprocess.Popen[str]:
    directory.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return preloaded.start(str(SCRIPT), cwd=directory, env=environment)


def newest(directory: Path) -> int:
    return max((int(p.name[5:]) for p in directory.glob("run/step-*")), default=0)


def killed_amid(directory: Path) -> bool:
    """Start the loop and kill it in its second epoch; return False if it was complete by then."""
    process = start(directory)
    while newest(directory) < 37 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert newest(directory) >= 37
    return newest(directory) < STEPS


def test_hand_written_training_loop_that_is_killed_resumes_to_the_same_bytes(tmp_path):
    uninterrupted = start(tmp_path / "uninterrupted")
    for _ in range(10):  # on a busy machine, the loop may end before it is killed
        if killed_amid(tmp_path / "killed"):
            break
        shutil.rmtree(tmp_path / "killed")
    assert 37 <= newest(tmp_path / "killed") < STEPS
    assert start(tmp_path / "killed").wait(600) == 0
    assert uninterrupted.wait(600) == 0
    for file in ("SHA256SUMS", "manifest.json", "tensors-00000.safetensors"):
        final = Path("run") / f"step-{STEPS:012d}" / file
        found, expected = (tmp_path / name / final for name in ("killed", "uninterrupted"))
        assert found.read_bytes() == expected.read_bytes()
