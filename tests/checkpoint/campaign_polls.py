"""Read beside two writers: `python -m tests.checkpoint.campaign_polls --count 10000`.

One process saves as fast as it can and keeps a single checkpoint, so that each checkpoint is deleted
milliseconds after it appeared; every third save replaces the checkpoint of the previous step. A second
process tries to write to the same directory, and must be refused every time. This process loads the
newest checkpoint again and again: it must have the bits that were saved, must not be older than the one
loaded before, and must not be reported as damaged.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import ftrain
from ftrain import checkpoint
from tests.checkpoint.states import train_state

KINDS = 7  # number of distinct states, so that the reader can compare them


class Result(NamedTuple):
    """Counts of a campaign; `torn`, `back` and `intruded` must be 0; `seen`: distinct steps loaded."""

    polls: int
    seen: int
    torn: int
    back: int
    intruded: int
    seconds: float


def campaign(count: int) -> Result:
    """Load the newest checkpoint `count` times beside two writers; return the faults."""
    torch.set_num_threads(1)
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    torn = back = newest = 0
    seen: set[int] = set()
    digests = [ftrain.tree.digest(train_state(kind)) for kind in range(KINDS)]
    with tempfile.TemporaryDirectory(dir=base, prefix="ftrain-polls-") as name:
        directory = Path(name) / "run"
        writer = _fork(lambda: _write(directory))
        store = checkpoint.Store(directory)
        while not store.steps():
            time.sleep(0.001)
        intruder = _fork(lambda: _intrude(directory))
        start = time.monotonic()
        like = train_state(0)
        for poll in range(count):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    if poll % 5 == 4:
                        path = store.latest()
                        assert path is not None
                        save = int(path.name.removeprefix("step-").removesuffix(".new"))
                        back += save < _step(newest)
                    else:
                        state, save = store.load(like=like, on_change="ignore")
                        back += save < newest
                        torn += ftrain.tree.digest(state) != digests[save % KINDS]
                except (checkpoint.CheckpointError, Warning, AssertionError) as error:
                    print(repr(error))
                    torn += 1
                    continue
            newest = max(newest, save)
            seen.add(save)
        seconds = time.monotonic() - start
        intruded = 0
        for process in (intruder, writer):
            if os.waitpid(process, os.WNOHANG)[0]:
                intruded += 1
                continue
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    return Result(count, len(seen), torn, back, intruded, seconds)


def _write(directory: Path) -> None:
    with checkpoint.Store(directory, keep_last=1) as store:
        for save in range(1, 10**9):
            state = train_state(save % KINDS)
            store.save(state, step=_step(save), metadata=save, replace=save % 3 == 0)


def _step(save: int) -> int:
    """Return the step of the n-th save: every third save replaces the one before it."""
    return save - (save % 3 == 0)


def _intrude(directory: Path) -> None:
    """Save as a second writer until a save succeeds, which is a fault."""
    while True:
        try:
            checkpoint.Store(directory).save({"w": torch.ones(1)}, step=10**10)
        except checkpoint.CheckpointLockedError:
            time.sleep(0.002)
        else:
            return


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    result = campaign(parser.parse_args().count)
    print(result)
    sys.exit(bool(result.torn or result.back or result.intruded))
