"""Kill runs at random times: `python -m tests.checkpoint.campaign_kills --count 10000`.

A forked process resumes a run, takes steps, saves after each, and writes the steps whose saves have
returned to a pipe. It is killed within milliseconds, and another process resumes the run. After each
kill:

- the newest checkpoint loads, and is at least as new as the last one acknowledged;
- its bits are those of the uninterrupted run at that step;
- every other checkpoint of the store verifies, too.

At the end the run is completed without interruption; then the directory may contain complete checkpoints
only. There are four kinds of run: synchronous or asynchronous saves, of a small state or of one of
several megabytes, which is hashed in a thread. Bytes that a killed process wrote are not lost, synced or
not, so the campaign may run in memory; `weak_disk.py` simulates crashes of the machine.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

import ftrain
from ftrain import checkpoint

STEPS = 100  # steps of a run, after which a new run begins


class Result(NamedTuple):
    """Counts of a campaign; all except `kills`, `steps`, `in_save` and `seconds` must be zero."""

    kills: int
    steps: int
    in_save: int
    lost: int
    unreadable: int
    wrong_bits: int
    left: int
    seconds: float


class Run:
    """A training run whose states are known beforehand."""

    def __init__(self, directory: Path, size: int, asynchronous: bool) -> None:
        self.directory, self.size, self.asynchronous = directory, size, asynchronous
        self.window = 0.04
        self.digests = [ftrain.tree.digest(state := self.start())]
        for _ in range(STEPS + 1):
            state = self.step(state)
            self.digests.append(ftrain.tree.digest(state))

    def start(self) -> dict[str, torch.Tensor]:
        return {
            "w": torch.linspace(0, 1, self.size),
            "key": ftrain.random.key(0),
            "step": torch.tensor(0),
        }

    def step(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        key = ftrain.random.fold_in(state["key"], state["step"])
        noise = ftrain.random.uniform(key, (8,))
        w = torch.sin(state["w"] * 1.1 + noise.sum())
        return {"w": w, "key": key, "step": state["step"] + 1}

    def store(self) -> checkpoint.Store:
        return checkpoint.Store(self.directory, keep_last=2, asynchronous=self.asynchronous)

    def work(self, acknowledge: int | None, until: int = STEPS) -> None:
        """Resume from the newest checkpoint."""

        def safe(step: int) -> None:
            if acknowledge is not None and step:
                os.write(acknowledge, struct.pack("q", step))

        with self.store() as store:
            state, metadata = store.load(like=self.start(), default={"step": 0}, on_change="ignore")
            assert int(state["step"]) == metadata["step"]
            for step in range(metadata["step"] + 1, until + 1):
                state = self.step(state)
                store.save(state, step=step, metadata={"step": step})
                # An asynchronous save has waited for the previous save.
                safe(step - 1 if self.asynchronous else step)
        safe(until)


def campaign(count: int, seed: int = 0, base: str | None = None, verbose: bool = False) -> Result:
    """Kill `count` times."""
    torch.set_num_threads(1)
    dice, start = random.Random(seed), time.monotonic()
    steps = in_save = lost = unreadable = wrong = left = 0
    if base is None and os.access("/dev/shm", os.W_OK):
        base = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=base, prefix="ftrain-kills-") as name:
        runs = [
            Run(Path(name) / f"{size}-{asynchronous}", size, asynchronous)
            for size in (100, 600_000)
            for asynchronous in (False, True)
        ]
        acknowledged = dict.fromkeys(range(len(runs)), 0)
        for kill in range(count):
            which = dice.choices(range(len(runs)), weights=[4, 4, 1, 1])[0]
            run = runs[which]
            sent = _work_until_killed(run, dice.uniform(0.0, run.window))
            # The time to the next kill is adapted to the machine: a few steps for each kill.
            run.window = min(5.0, run.window * 1.25) if len(sent) < 2 else run.window / 1.1
            acknowledged[which] = max([acknowledged[which], *sent])
            steps += len(sent)
            in_save += any(path.name.startswith(".tmp-") for path in run.directory.glob(".*"))
            found, readable, same = _inspect(run)
            unreadable += not readable
            wrong += not same
            lost += found < acknowledged[which]
            if found >= STEPS:
                left += _finish(run)
                acknowledged[which] = 0
            if verbose and (kill + 1) % 500 == 0:
                print(
                    f"{kill + 1} kills, {steps} acknowledged, {in_save} inside a save: lost {lost}, "
                    f"unreadable {unreadable}, wrong bits {wrong}",
                    flush=True,
                )
        left += sum(map(_finish, runs))
    return Result(count, steps, in_save, lost, unreadable, wrong, left, time.monotonic() - start)


def _work_until_killed(run: Run, seconds: float) -> list[int]:
    """Return the steps whose saves had returned before the process was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            run.work(writing)
            time.sleep(600)
        finally:
            os._exit(1)  # reached only if the process was not killed
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the process failed by itself"
    sent = b""
    while part := os.read(reading, 1 << 16):
        sent += part
    os.close(reading)
    return [step for (step,) in struct.iter_unpack("q", sent[: len(sent) // 8 * 8])]


def _inspect(run: Run) -> tuple[int, bool, bool]:
    """Return the newest step, and whether all checkpoints are readable and the bits correct."""
    store = run.store()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            state, metadata = store.load(like=run.start(), default={"step": 0}, on_change="ignore")
            for step in store.steps():
                checkpoint.verify(run.directory / f"step-{step:012d}")
        except (checkpoint.CheckpointError, Warning):
            return 0, False, True
    return metadata["step"], True, ftrain.tree.digest(state) == run.digests[metadata["step"]]


def _finish(run: Run) -> int:
    """Complete the run and return the number of faults: wrong bits and leftover files."""
    run.work(None, until=STEPS + 1)  # saves at least once, which deletes leftover directories
    found, readable, same = _inspect(run)
    odd = [p.name for p in run.directory.iterdir() if not p.name.startswith("step-")]
    shutil.rmtree(run.directory)
    return (found != STEPS + 1 or not readable or not same) + (odd != [".lock"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--directory", default=None, help="where; default: the system's temporary one"
    )
    options = parser.parse_args()
    result = campaign(options.count, options.seed, options.directory, verbose=True)
    print(result)
    sys.exit(bool(result.lost or result.unreadable or result.wrong_bits or result.left))
