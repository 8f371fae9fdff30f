"""Flip single bits of checkpoints: `python -m tests.checkpoint.campaign_flips --count 100000`.

One random bit in one of the files of a checkpoint is flipped, with equal probability for all bytes;
loading the checkpoint must raise.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from ftrain import checkpoint
from tests.checkpoint.states import train_state


class Result(NamedTuple):
    """Counts of flipped bits, of detected flips, and of errors other than `CheckpointError`."""

    flips: int
    found: int
    other: int
    seconds: float


def campaign(count: int, seed: int = 0) -> Result:
    """Flip `count` bits, one at a time."""
    torch.set_num_threads(1)
    dice, start, found, other = random.Random(seed), time.monotonic(), 0, 0
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base, prefix="ftrain-flips-") as name:
        path, state = Path(name) / "one", train_state(1)
        checkpoint.save(path, state, metadata={"data": {"seed": 0, "epoch": 1, "position": 7}})
        files = sorted(path.iterdir())
        sizes = [file.stat().st_size for file in files]
        for _ in range(count):
            (file,) = dice.choices(files, weights=sizes)
            with open(file, "r+b", buffering=0) as raw:
                position = dice.randrange(file.stat().st_size)
                whole = os.pread(raw.fileno(), 1, position)
                os.pwrite(raw.fileno(), bytes([whole[0] ^ 1 << dice.randrange(8)]), position)
                try:
                    checkpoint.load(path, like=state, on_change="ignore")
                except checkpoint.CheckpointCorruptError:
                    found += 1
                except Exception as error:
                    other += 1
                    print(f"{file.name} byte {position}: {error!r}")
                os.pwrite(raw.fileno(), whole, position)
        checkpoint.load(path, like=state)
    return Result(count, found, other, time.monotonic() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = campaign(options.count, options.seed)
    print(result)
    sys.exit(result.found != result.flips)
