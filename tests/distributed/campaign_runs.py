"""Kill random ranks of whole runs at random times.

    python -m tests.distributed.campaign_runs --count 200

`ftrain train` trains a configuration with `logical_shards` on 2 or 4 ranks, by `data_parallel` or
`fully_sharded`, with checkpoints, evaluations and logs. One rank is killed at any time, from its start
on; the next ranks, of another number, resume the run. Every second start is under torchrun, which starts
the ranks again once. After each kill:

- every other rank ends in time;
- every checkpoint that a rank has reported as saved is there, or a newer one, and the newest verifies;
- the newest has the bytes of the same step of one process that was never stopped, leaf by leaf.

At the end, ranks finish the run undisturbed, with the bytes of that process.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ftrain import checkpoint
from ftrain.config import load_run
from ftrain.testing import assert_same_bits
from tests import preloaded
from tests.config.tiny import configured
from tests.distributed.threads import memory_folder
from tests.distributed.whole_run import Whole

SHARDS = 4
TIMEOUT = 10.0  # seconds that ranks wait for one another
END = 3 * TIMEOUT + 30.0  # seconds for the time-out, an error on each rank, and a busy machine
START = 300.0  # seconds for new interpreters to complete a step, on a busy machine
STRATEGIES = ("data_parallel", "fully_sharded")

TOLD = '''
import os
from ftrain.loop import BatchEnd, Saved

class Told:
    """Append each saved and each completed step to a file, which outlives a killed process."""
    listens = (BatchEnd, Saved)

    def __init__(self, path: str, all_ranks: bool):
        self.path, self.all_ranks = path, all_ranks

    def init(self):
        return None

    def __call__(self, state, event):
        saves = self.all_ranks or os.environ.get("RANK", "0") == "0"
        kind = "step" if isinstance(event, BatchEnd) else "saved" if saves else "other"
        line = f"{kind} {event.progress.step} {os.getpid()}\\n"
        with open(self.path, "a") as file:
            file.write(line)
        return state, ()
'''


@dataclasses.dataclass
class Result:
    """Counts of a campaign; those that `wrong` names must be zero.

    Attributes:
        kills: killed ranks.
        of_leaders: killed ranks that were rank 0.
        in_step: kills after the rank's first step.
        restarts: kills after which torchrun started the ranks again.
        steps: steps that ranks have completed, all together.
        saved: the newest step that was reported as saved, over all runs.
        seconds: the duration of the campaign.
        lost: kills after which a checkpoint that was reported as saved was gone, and no newer one there.
        unreadable: kills after which the newest checkpoint did not verify.
        hung: processes that did not end in time.
        silent: kills after which no other rank has named a rank in its error.
        compared: checkpoints that were compared with one process.
        wrong_bits: checkpoints and ends of runs with other bytes than one process.
    """

    kills: int = 0
    of_leaders: int = 0
    in_step: int = 0
    restarts: int = 0
    steps: int = 0
    saved: int = 0
    seconds: float = 0.0
    lost: int = 0
    unreadable: int = 0
    hung: int = 0
    silent: int = 0
    compared: int = 0
    wrong_bits: int = 0

    def wrong(self) -> dict[str, int]:
        """Return the counts that must be zero, but are not."""
        names = ("lost", "unreadable", "hung", "silent", "wrong_bits")
        return {name: count for name in names if (count := getattr(self, name))}


class Run:
    """A run that is started again after each kill.

    Args:
        folder: a directory of its own.
        strategy: the strategy of the run.
    """

    def __init__(self, folder: Path, strategy: str) -> None:
        folder.mkdir()
        (folder / "told.py").write_text(TOLD)
        self.folder, self.told = folder / "run", folder / "told.txt"
        self.log = folder / "output.txt"
        told = {"path": str(self.told), "all_ranks": strategy == "fully_sharded"}
        options: dict[str, Any] = {
            "distributed": {"strategy": strategy, "logical_shards": SHARDS, "timeout": TIMEOUT},
            "callbacks": [{"name": "told.py:Told", **told}],
            "checkpoint": {"every": 3},
            "model": {"name": "project.py:Net", "width": 6, "dropout": 0.1},
            "epochs": None,
            "max_steps": 10**6,
            "ema": 0.9,
            "threads": 1,
        }
        self.path = configured(folder, **options)

    def lines(self) -> list[tuple[str, int, int]]:
        """Return (kind, step, process) of each line that a rank has written, of whole lines only."""
        text = self.told.read_text() if self.told.exists() else ""
        rows = [line.split() for line in text.split("\n")[:-1]]
        return [(kind, int(step), int(pid)) for kind, step, pid in rows]

    def newest_saved(self) -> int:
        """Return the newest step that a rank has reported as saved."""
        return max((step for kind, step, _ in self.lines() if kind == "saved"), default=0)

    def start(self, size: int, torchrun: bool, *overrides: str) -> list[Any]:
        """Start the ranks, or torchrun, which starts them; return their processes."""
        begins = not list(self.folder.glob("checkpoints/step-*"))
        command = ["train", str(self.path), f"output_dir={self.folder}", "--overwrite"]
        command = command if begins else ["resume", str(self.folder)]
        ftrain = ["-m", "ftrain", *command, *overrides]
        common = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        with open(self.log, "w") as output:
            given: Any = {"stdout": output, "stderr": subprocess.STDOUT}
            if torchrun:
                launch = "-m torch.distributed.run --standalone --max-restarts 1 --nproc-per-node"
                return [preloaded.start(*launch.split(), str(size), *ftrain, env=common, **given)]
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
            return [
                preloaded.start(*ftrain, env={**common, **_place(rank, size)}, **given)
                for rank in range(size)
            ]


def campaign(kills: int, seed: int = 0, minutes: float = 1e9, verbose: bool = False) -> Result:
    """Kill `kills` ranks, or as many as `minutes` allow."""
    dice, start, result = random.Random(seed), time.monotonic(), Result()
    window = 3.0
    with memory_folder() as folder, contextlib.ExitStack() as ends:
        runs = [Run(folder / strategy, strategy) for strategy in STRATEGIES]
        wholes = [Whole(run.path, min(3000, 200 * kills + 100)) for run in runs]
        ends.enter_context(_killed_at_the_end([whole.process for whole in wholes]))
        while result.kills < kills and time.monotonic() - start < 60 * minutes:
            run, whole = runs[result.kills % 2], wholes[result.kills % 2]
            size, torchrun = dice.choice([2, 2, 4]), result.kills % 4 > 1
            seen = len(run.lines())
            processes = run.start(size, torchrun)
            with _killed_at_the_end(processes):
                window = _kill_one(run, processes, size, torchrun, dice, window, seen, result)
            result.steps += sum(kind == "step" for kind, _, _ in run.lines()[seen:])
            _check(run, result, whole)
            if verbose:
                print(result, flush=True)
        for run, whole in zip(runs, wholes, strict=True):
            result.saved = max(result.saved, run.newest_saved())
            _finish(run, result, whole)
    result.seconds = time.monotonic() - start
    return result


def _kill_one(
    run: Run,
    processes: list[Any],
    size: int,
    torchrun: bool,
    dice: random.Random,
    window: float,
    seen: int,
    result: Result,
) -> float:
    """Kill one rank, and wait for the end of all others.

    Of three kills two fall after a step, and one at any time before the first step.

    Args:
        window: the seconds from an earlier start to its first step.
        seen: the number of lines that ranks had written before the start.

    Returns:
        The next `window`.
    """
    begun = time.monotonic()
    if result.kills % 3 == 1:
        time.sleep(dice.uniform(0.0, window))
    else:
        while len(run.lines()) <= seen and time.monotonic() - begun < END:
            time.sleep(0.01)
        window = time.monotonic() - begun
        time.sleep(dice.uniform(0.0, 2.0))
    ranks = _children(processes[0].pid) if torchrun else [each.pid for each in processes]
    while torchrun and len(ranks) < size and time.monotonic() - begun < END:
        time.sleep(0.05)
        ranks = _children(processes[0].pid)
    whom = dice.randrange(len(ranks))
    stepped = len(run.lines()) > seen
    with contextlib.suppress(ProcessLookupError):
        os.kill(ranks[whom], signal.SIGKILL)
    result.kills += 1
    result.of_leaders += whom == 0
    result.in_step += stepped
    if torchrun:  # the ranks start again, and train until they are stopped
        restarted, late = _restarted(run, processes[0], ranks)
        result.restarts += restarted
        result.hung += late
        processes[0].send_signal(signal.SIGTERM)
        result.hung += _ended(processes, END)
    else:
        result.hung += _ended(processes, END)
        says = run.log.read_text(errors="replace")
        if "rank " not in says:
            result.silent += 1
            print(f"No rank is named after the kill of rank {whom} of {size}:\n{says}", flush=True)
    return window


def _restarted(run: Run, agent: Any, ranks: list[int]) -> tuple[bool, bool]:
    """Wait until the ranks of torchrun have ended and started again, or torchrun has ended.

    Args:
        run: the run.
        agent: the process of torchrun.
        ranks: the processes of the first start, one of which was killed.

    Returns:
        True if a rank of the next start has completed a step; True if a process did not end in time,
        or no rank completed a step in time.
    """
    before, deadline = len(run.lines()), time.monotonic() + END
    while agent.poll() is None and {*ranks} & {*_children(agent.pid)}:
        if time.monotonic() > deadline:
            return False, True
        time.sleep(0.05)
    # A new interpreter imports torch, for which a busy machine may need longer than ranks have to end.
    deadline = time.monotonic() + START
    while agent.poll() is None:
        if any(pid not in ranks for _, _, pid in run.lines()[before:]):
            return True, False
        if time.monotonic() > deadline:
            return False, True
        time.sleep(0.05)
    return False, False


def _ended(processes: list[Any], seconds: float) -> int:
    """Wait for processes; return the number of those that do not end in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(each.poll() is not None for each in processes):
            return 0
        time.sleep(0.02)
    return sum(each.poll() is None for each in processes)


@contextlib.contextmanager
def _killed_at_the_end(processes: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for each in processes:
            for pid in [*_children(each.pid), each.pid]:
                with contextlib.suppress(ProcessLookupError):
                    if each.poll() is None:
                        os.kill(pid, signal.SIGKILL)
        _ended(processes, 30.0)


def _children(pid: int) -> list[int]:
    """Return the process ids of the children of a process, in the order of their start."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _place(rank: int, size: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}


def _check(run: Run, result: Result, whole: Whole | None = None) -> None:
    """Check the checkpoints of a run in this process, and compare the newest with the whole run."""
    store = checkpoint.Store(run.folder / "checkpoints")
    newest = max(_steps(run), default=0)
    result.lost += newest < run.newest_saved()
    if newest:
        path = store.latest()
        is_readable = path is not None and int(path.name[5:]) == newest
        result.unreadable += not is_readable
        if is_readable and whole is not None:
            _compare(run, result, whole)


def _steps(run: Run) -> list[int]:
    """Return the steps of the checkpoints of a run."""
    folder = run.folder / "checkpoints"
    return checkpoint.Store(folder).steps() if folder.exists() else []


def _compare(run: Run, result: Result, whole: Whole) -> None:
    """Compare the newest checkpoint of a run with the same step of one process."""
    state = load_run(run.folder, "latest").state
    right = whole.after(int(state.step))
    if right is None:
        return
    result.compared += 1
    try:
        assert_same_bits(state, right)
    except AssertionError as error:
        result.wrong_bits += 1
        says = run.log.read_text(errors="replace")
        print(f"{run.folder}, step {int(state.step)}: {error}\n{says}", flush=True)


def _finish(run: Run, result: Result, whole: Whole) -> None:
    """Let two ranks finish a run, and compare it with one process that was never stopped."""
    # A checkpoint that a survivor of rank 0 wrote is not reported, and may be the newest.
    last = max(_steps(run), default=0) + 5
    processes = run.start(2, False, f"max_steps={last}", "epochs=null")
    with _killed_at_the_end(processes):
        late = _ended(processes, 10 * END)
        codes = [each.poll() for each in processes]
    result.hung += late
    before = result.wrong_bits
    _compare(run, result, whole)
    is_last = int(load_run(run.folder, "latest").state.step) == last
    if codes != [0, 0] or not is_last:
        result.wrong_bits = before + 1
        says = run.log.read_text(errors="replace")
        print(f"A run ended with {codes}, and not after step {last}:\n{says}", flush=True)


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
