"""Laws 2 and 7 across processes: equal bits in a new process, and after stopping and resuming."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.laws.fresh import CASES

pytestmark = pytest.mark.inductor


def train(source: Path | str, target: Path, seed: str) -> Any:
    """Run `fresh.py` under a given hash seed, and return the bytes of every leaf that it stores."""
    subprocess.run(
        [sys.executable, "-m", "tests.laws.fresh", str(source), str(target)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
        cwd=Path(__file__).parents[2],
    )
    return np.load(target)


def state(run: Any, name: str) -> dict[str, bytes]:
    found = {key[len(name) :]: run[key].tobytes() for key in run.files if key.startswith(name)}
    assert len(found) > 10, f"{name!r} is not stored"
    return found


def test_runs_in_fresh_and_resumed_processes_have_the_same_bits(
    tmp_path: Path,
) -> None:
    """One process trains from a seed; another repeats that and resumes the first run from halfway.

    One test for all cases: most of its time goes into starting the two.
    """
    first = train("-", tmp_path / "first.npz", seed="1")
    second = train(tmp_path / "first.npz", tmp_path / "second.npz", seed="2")
    for mode, model, precision, _ in CASES:
        case = f"{mode} {model} {precision}"
        end = state(first, f"{case} whole at the end")
        assert state(first, f"{case} whole at half") != end, case
        assert state(second, f"{case} whole at the end") == end, f"law 2: {case}"
        assert state(second, f"{case} resumed at the end") == end, f"law 7: {case}"
