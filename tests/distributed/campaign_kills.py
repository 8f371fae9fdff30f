"""Kill random ranks at random times: `python -m tests.distributed.campaign_kills --count 200`.

Forked ranks resume a run from its newest checkpoint, take steps, and save after each step. Each rank
writes to a pipe the checkpoints whose save has returned. One rank is killed within milliseconds. After
each kill:

- every other rank ends in time, with an error that names a rank;
- the newest checkpoint loads in one process, and is at least as new as the last one acknowledged;
- its bits are those of the undisturbed run at that step, and every other checkpoint verifies.

The number of ranks changes at random, so each resume also changes the partition. At the end, ranks
finish the run undisturbed; nothing but whole checkpoints may be left.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import signal
import struct
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from ftrain import checkpoint, tree
from ftrain.distributed import ShardedStore
from tests.distributed import forked
from tests.distributed.threads import blank, layouts, local, memory_folder

TIMEOUT = 10.0  # seconds that ranks wait for one another
END = 10**6


@dataclasses.dataclass
class Result:
    """Counts of a campaign; all of the last six must be zero.

    Attributes:
        kills: killed ranks.
        of_leaders: killed ranks that were rank 0.
        steps: checkpoints whose save has returned on a rank.
        in_save: kills after which a rank reported an error.
        seconds: the duration of the campaign.
        lost: acknowledged checkpoints that were gone.
        unreadable: checkpoints that did not verify.
        wrong_bits: checkpoints with other bytes than the undisturbed run.
        hung: ranks that did not end in time.
        other_errors: ranks that ended by another error than one that names a rank.
        left: files or directories that are neither a checkpoint nor the lock.
    """

    kills: int = 0
    of_leaders: int = 0
    steps: int = 0
    in_save: int = 0
    seconds: float = 0.0
    lost: int = 0
    unreadable: int = 0
    wrong_bits: int = 0
    hung: int = 0
    other_errors: int = 0
    left: int = 0

    def wrong(self) -> dict[str, int]:
        """Return the counts that must be zero, but are not."""
        names = ("lost", "unreadable", "wrong_bits", "hung", "other_errors", "left")
        return {name: count for name in names if (count := getattr(self, name))}


def state_at(step: int) -> dict[str, Any]:
    """Return the whole state after a step, a function of the step number."""
    generator = torch.Generator().manual_seed(step)
    return {
        "w": torch.randn(601, 7, generator=generator),
        "b": torch.randn(5, generator=generator),
        "step": torch.tensor(step),
    }


def work(mesh: Any, folder: str, asynchronous: bool, until: int, pipe: int) -> None:
    """Resume from the newest checkpoint, and save each step."""
    layout = layouts(state_at(0), mesh.size())[mesh.get_local_rank()]

    def safe(step: int) -> None:
        os.write(pipe, struct.pack("q", step))

    with ShardedStore(
        folder, mesh, layout=layout, timeout=TIMEOUT, keep_last=2, asynchronous=asynchronous
    ) as store:
        safe(0)  # ready
        like = blank(local(state_at(0), layout))
        found, metadata = store.load(like, default={"step": 0}, on_change="ignore")
        step = metadata["step"]
        if step and tree.digest(found) != tree.digest(local(state_at(step), layout)):
            raise AssertionError(f"step {step} has other bytes")
        while step < until:
            step += 1
            store.save(local(state_at(step), layout), step=step, metadata={"step": step})
            safe(
                step - 1 if asynchronous else step
            )  # an asynchronous save waits for the one before
    safe(step)


def campaign(kills: int, seed: int = 0, minutes: float = 1e9, verbose: bool = False) -> Result:
    """Kill `kills` ranks, or as many as `minutes` allow."""
    dice, start, result = random.Random(seed), time.monotonic(), Result()
    window = 0.3
    with memory_folder() as folder:
        run, acknowledged = folder / "run", 0
        while result.kills < kills and time.monotonic() - start < 60 * minutes:
            size, asynchronous = dice.choice([2, 2, 3, 4]), dice.random() < 0.3
            reader, writer = os.pipe()
            args = (str(run), asynchronous, END, writer)
            with forked.ranks(size, work, *args) as pids:
                os.close(writer)
                early = b"".join(os.read(reader, 8) for _ in range(size))
                time.sleep(dice.uniform(0.0, window))
                whom = dice.randrange(size)
                os.kill(pids[whom], signal.SIGKILL)
                others = [pid for pid in pids if pid != pids[whom]]
                codes = forked.exit_codes(others, 2 * TIMEOUT + 10.0)
            told = _all_of(reader, early)
            # On a busy machine, the delay grows, so that there are a few steps before each kill.
            window = min(20.0, window * 1.3) if len(told) < 2 * size else window / 1.05
            acknowledged = max([acknowledged, *told])
            result.kills += 1
            result.of_leaders += whom == 0
            result.steps += len(told)
            result.in_save += forked.RANK_ERROR in codes
            result.hung += codes.count(None)
            result.other_errors += sum(code not in (None, forked.RANK_ERROR) for code in codes)
            _check(run, acknowledged, result)
            if verbose and result.kills % 10 == 0:
                print(result, flush=True)
        reader, writer = os.pipe()
        last = acknowledged + 3
        with forked.ranks(2, work, str(run), False, last, writer) as pids:
            os.close(writer)
            result.other_errors += forked.exit_codes(pids, 60.0) != [0, 0]
        _check(run, last, result)
        names = [path.name for path in run.iterdir()]
        result.left = sum(name != ".lock" and not name.startswith("step-") for name in names)
        result.left += sum(name.endswith(".new") for name in names)
        os.close(reader)
    result.seconds = time.monotonic() - start
    return result


def _all_of(reader: int, data: bytes) -> list[int]:
    """Return the nonzero steps in `data` and in the rest of a pipe whose writers have ended."""
    while part := os.read(reader, 1 << 16):
        data += part
    os.close(reader)
    return [step for (step,) in struct.iter_unpack("q", data[: len(data) // 8 * 8]) if step]


def _check(run: Path, acknowledged: int, result: Result) -> None:
    """Check every checkpoint of the run in this process."""
    steps = checkpoint.Store(run).steps() if run.exists() else []
    result.lost += acknowledged > max(steps, default=0)
    for step in steps:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                state, _ = checkpoint.Store(run).load(
                    blank(state_at(0)), step=step, on_change="ignore"
                )
            except checkpoint.CheckpointError:
                result.unreadable += 1
                continue
        result.wrong_bits += tree.digest(state) != tree.digest(state_at(step))


def main() -> None:
    """Run a campaign, and end with status 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="ranks to kill")
    parser.add_argument("--minutes", type=float, default=1e9, help="end after so many minutes")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"seed {given.seed}", flush=True)
    result = campaign(given.count, given.seed, given.minutes, verbose=True)
    print(result)
    sys.exit(bool(result.wrong()))


if __name__ == "__main__":
    main()
