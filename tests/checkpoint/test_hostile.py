"""Test that hostile checkpoints are refused and execute no code."""

from __future__ import annotations

import os
from pathlib import Path

from tests import preloaded
from tests.checkpoint.campaign_fuzz import campaign


def test_hostile_checkpoints_are_refused_without_forbidden_audit_events():
    """An audit hook cannot be removed, so the check runs in its own process."""
    done = preloaded.run(
        "-m",
        "tests.checkpoint.hostile",
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.endswith("hostile checkpoints refused\n")


def test_mutated_manifests_are_refused_in_bounded_time_and_memory():
    result = campaign(500)
    assert result.other == result.slow == 0
    assert result.refused > 333
    assert result.megabytes < 200
