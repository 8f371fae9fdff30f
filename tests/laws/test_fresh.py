"""Laws 2 and 7 across processes: the same bits in a fresh one, and after stopping and resuming."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def train(mode: str, source: Path | str, target: Path, count: int, first: int, seed: str) -> bytes:
    """Run `fresh.py` under another hash seed; the bytes of every leaf it ends with."""
    command = [sys.executable, "-m", "tests.laws.fresh", mode, str(source), str(target)]
    subprocess.run(
        [*command, str(count), str(first)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
        cwd=Path(__file__).parents[2],
    )
    stored = np.load(target)
    assert len(stored.files) > 10
    return b"".join(name.encode() + stored[name].tobytes() for name in stored.files)


@pytest.mark.parametrize(
    "mode", ["eager", "traced", pytest.param("inductor", marks=pytest.mark.inductor)]
)
def test_laws_2_and_7_in_fresh_processes(mode: str, tmp_path: Path) -> None:
    whole = train(mode, "-", tmp_path / "whole.npz", 4, 0, seed="1")
    first = train(mode, "-", tmp_path / "first.npz", 2, 0, seed="2")
    assert first != whole
    resumed = train(mode, tmp_path / "first.npz", tmp_path / "resumed.npz", 2, 2, seed="3")
    assert resumed == whole
