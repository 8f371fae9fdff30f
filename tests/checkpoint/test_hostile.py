"""Checkpoints as an enemy writes them are refused, and run nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.checkpoint.campaign_fuzz import campaign


def test_hostile_checkpoints_are_refused_under_audit():
    """An audit hook cannot be taken off again, so it gets a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.hostile"],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("hostile checkpoints refused\n")


def test_mutants():
    result = campaign(1500)
    assert result.other == result.slow == 0
    assert result.refused > 1000
    assert result.megabytes < 200
