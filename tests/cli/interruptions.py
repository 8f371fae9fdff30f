"""Compare runs that are interrupted at random times and resumed with an uninterrupted run.

    python -m tests.cli.interruptions --runs 20           # a campaign on the digits; minutes

The checkpoints that are kept must be equal byte for byte; the rows of the log and the results must be
equal except for clock times.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from ftrain.config import load
from ftrain.config.run import store
from tests import preloaded

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
DIGITS = pathlib.Path(__file__).parents[2] / "examples" / "configs" / "digits.yaml"
#: A small run on the digits, with every component that has a state or makes decisions.
SMALL = (
    "epochs=3",
    "compile=false",
    "log_every=4",
    "eval_every=9",
    "checkpoint.every=5",
    "checkpoint.keep_best=2",
    "checkpoint.every_minutes=0.01",
    "early_stopping={patience: 4, monitor: eval/loss}",
    "ema=0.9",
    "callbacks=[GradientMonitor, LearningRateMonitor, WindowedAverage, RunningAverage, PhaseTimes, "
    "{name: AccumulationSchedule, schedule: {0: 1, 2: 2}}, {name: TimeLimit, hours: 1}]",
)


def started(folder: pathlib.Path, *arguments: str) -> preloaded.Process | subprocess.Popen[str]:
    """Start the command `ftrain ...` in a directory."""
    return preloaded.start(
        "-m",
        "ftrain",
        *arguments,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finished(folder: pathlib.Path, *arguments: str) -> str:
    """Run a command that must succeed; return its output."""
    process = started(folder, *arguments)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def checkpoints(run: pathlib.Path) -> dict[str, bytes]:
    """Return all bytes of the newest and the best checkpoint, by name."""
    kept = store(load(run / "config.yaml"), run)
    found = {"latest": kept.latest(), "best": kept.best()}
    return {
        f"{name} {path.name}/{file.name}": file.read_bytes()
        for name, path in found.items()
        if path is not None
        for file in sorted(path.iterdir())
    }


def log(run: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of `metrics.jsonl`, without times."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    clocks = re.compile(r"time(/.*)?|(.*/)?duration|.*_per_second")
    return [{k: v for k, v in row.items() if not clocks.fullmatch(k)} for row in rows]


def results(run: pathlib.Path) -> dict[str, Any]:
    """Return the content of `result.json`, without times and paths."""
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    for result in found["history"]:
        del result["duration"]
    return {name: value for name, value in found.items() if name != "checkpoint"}


def differences(run: pathlib.Path, uninterrupted: pathlib.Path) -> list[str]:
    """Return the names of the checkpoints, logs and results that differ between two runs."""
    ours, theirs = checkpoints(run), checkpoints(uninterrupted)
    found = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    return found + [part.__name__ for part in (log, results) if part(run) != part(uninterrupted)]


def disturbed(
    folder: pathlib.Path,
    train: Sequence[str],
    run: str,
    signals: Sequence[signal.Signals],
    draws: random.Random,
    longest: float,
) -> list[str]:
    """Train to the end, interrupted by each signal after a random time; return the exit codes."""
    happened = []
    for number in (*signals, None):
        began = (folder / run / "config.yaml").exists()
        process = started(folder, *(["resume", run] if began else train))
        if number is not None:
            checkpoint = folder / run / "checkpoints"
            before = set(checkpoint.glob("step-*"))
            while process.poll() is None and set(checkpoint.glob("step-*")) <= before:
                time.sleep(0.005)  # until the process has saved, so that it is training
            time.sleep(draws.uniform(0, longest))
            process.send_signal(number)
        said, _ = process.communicate(timeout=600)
        code = process.returncode
        over = "completed at step" in said or "stopped at step" in said  # the run ended first
        expected = 0 if number is None else SIGNALS[number]
        assert code == expected or over, f"exit code {code}, expected {expected}: {said}"
        happened.append(f"{number.name if number else 'end'}: {code}")
        if over:
            break
    return happened


def campaign(runs: int, seed: int) -> int:
    """Return the number of interrupted runs that differ from the uninterrupted one."""
    draws, failed = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        train = ["train", str(DIGITS), *SMALL]
        finished(folder, *train, "output_dir=uninterrupted")
        for i in range(runs):
            signals = [draws.choice(list(SIGNALS)) for _ in range(draws.randint(1, 4))]
            run = f"run-{i}"
            happened = disturbed(folder, [*train, f"output_dir={run}"], run, signals, draws, 2.0)
            found = differences(folder / run, folder / "uninterrupted")
            failed += bool(found)
            print(f"{run}: {', '.join(happened)}: {found or 'equal'}", flush=True)
    print(f"{runs - failed} of {runs} equal")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.exit(bool(campaign(options.runs, options.seed)))
