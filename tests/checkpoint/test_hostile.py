"""Test that hostile checkpoints are refused and execute no code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.checkpoint.campaign_fuzz import campaign


def test_hostile_checkpoints_are_refused_without_forbidden_audit_events():
    """An audit hook cannot be removed, so the check runs in its own process."""
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


def test_mutated_manifests_are_refused_in_bounded_time_and_memory():
    result = campaign(500)
    assert result.other == result.slow == 0
    assert result.refused > 333
    assert result.megabytes < 200
