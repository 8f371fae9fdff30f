"""Run short forms of the campaigns that fork, each in its own process without threads."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests import preloaded


def run(campaign: str, count: int) -> dict[str, int]:
    done = preloaded.run(
        "-m",
        f"tests.checkpoint.{campaign}",
        "--count",
        str(count),
        timeout=1200,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return {name: int(n) for name, n in re.findall(r"(\w+)=(\d+)\b", done.stdout)}


def test_killing_a_writer_forty_times_loses_no_checkpoint():
    found = run("campaign_kills", 40)
    assert found["kills"] == 40
    assert found["lost"] == found["unreadable"] == found["wrong_bits"] == found["left"] == 0
    assert found["steps"] > 20, "killed too early to have saved anything"
    assert found["in_save"] > 2, "never killed inside a save"


def test_one_thousand_reads_beside_a_writer_see_no_incomplete_checkpoint():
    found = run("campaign_polls", 1000)
    assert found["polls"] == 1000
    assert found["torn"] == found["back"] == found["intruded"] == 0
    assert found["seen"] > 10, "the writer stood still"
