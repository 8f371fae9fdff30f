"""Wall time of a whole run of nanoGPT's sizes for a CPU, by ftrain and by nanoGPT's loop."""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
import time
from typing import Literal

from benchmarks import char_gpt_parity
from benchmarks.char_gpt_parity import Setting
from ftrain import data
from ftrain.bench import run_fresh

__all__ = ["LOOPS", "in_fresh_process"]

Loop = Literal["ftrain", "nanogpt"]
LOOPS: tuple[Loop, ...] = ("ftrain", "nanogpt")
LIMIT = 1800.0  # seconds


def in_fresh_process(loop: Loop, steps: int, backend: str) -> float:
    """Return the seconds of a run in a new process with an empty cache, compilation included."""
    command = [sys.executable, "-m", "benchmarks.peers.nanogpt", loop, str(steps), backend]
    root = pathlib.Path(__file__).parents[2]
    with tempfile.TemporaryDirectory(prefix="ftrain-nanogpt-") as folder:
        done = run_fresh(command, pathlib.Path(folder), folder=root, limit=LIMIT)
    return float(json.loads(done.output))


def child(loop: str, steps: int, backend: str) -> float:
    """Run a loop in this process, its evaluations included; return the seconds."""
    text = data.standard_library()
    setting = Setting(text, steps)
    start = time.perf_counter()
    if loop == "ftrain":
        char_gpt_parity.by_ftrain(setting, compiled=backend == "inductor")
    else:
        char_gpt_parity.by_hand(setting)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], int(sys.argv[2]), sys.argv[3])), flush=True)
