"""Resume at every step in a fresh process: `python -m tests.checkpoint.campaign_resume`.

For both runs of `resumed.py`, one process takes all steps and saves the last one only; another process
saves after every step. A new process then resumes from each of these checkpoints and completes the run.
Each file of its last checkpoint must equal that of the first process (state, cursor, the loss of every
step), in 40 of 40 cases.

The same holds with 0, 1, 2 and 4 workers before the stop and 0, 1, 2 and 4 after it: 16 of 16 cases.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.checkpoint.resumed import RUNS, STEPS, content

WORKERS = (0, 1, 2, 4)
STOP = 17  # in the middle of an epoch, with prefetched batches


class Result(NamedTuple):
    """Number of resumed runs, and of those that end with the bytes of the uninterrupted run."""

    run: str
    stopped: str
    equal: int
    of: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.run}, {self.stopped}: {self.equal} of {self.of} ({self.seconds:.0f} s)"


def process(name: str, source: Path | str, workers: int, target: Path, *options: str) -> None:
    """Train in a new process, from a checkpoint or from the beginning."""
    arguments = [name, str(source), str(workers), str(target), *options]
    subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.resumed", *arguments],
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"},
    )


def at(store: Path, step: int) -> Path:
    """Return the path of a step in a store."""
    return store / f"step-{step:012d}"


class Campaign:
    """Runs that are resumed in a directory, `jobs` processes at a time."""

    def __init__(self, directory: Path, jobs: int) -> None:
        self.directory, self.jobs = directory, jobs

    def every_step(self, name: str) -> Result:
        """Resume from the checkpoint of every step, from the first to the last but one."""
        begun, place = time.perf_counter(), self.directory / name
        whole, store = place / "whole", place / "each"
        process(name, "-", 2, whole)
        process(name, "-", 2, store, "--each")
        cases = [(at(store, step), 2, place / f"from-{step}") for step in range(STEPS)]
        equal = self._equal(name, whole, cases)
        return Result(name, "at every step", equal, len(cases), time.perf_counter() - begun)

    def swapped(self, name: str) -> Result:
        """Resume with every pair of worker numbers before and after the stop; needs `every_step`."""
        begun, place = time.perf_counter(), self.directory / name
        stores = {2: place / "each"}
        for before in set(WORKERS) - {2}:
            stores[before] = place / f"each-{before}"
            process(name, "-", before, stores[before], "--each")
        cases = [
            (at(stores[before], STOP), after, place / f"swapped-{before}-{after}")
            for before in WORKERS
            for after in WORKERS
        ]
        equal = self._equal(name, place / "whole", cases)
        return Result(name, "workers swapped", equal, len(cases), time.perf_counter() - begun)

    def _equal(self, name: str, whole: Path, cases: list[tuple[Path, int, Path]]) -> int:
        def ends_the_same(case: tuple[Path, int, Path]) -> bool:
            process(name, *case)
            return content(case[2]) == content(whole)

        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            return sum(pool.map(ends_the_same, cases))


def main() -> None:
    """Run the campaign for every run and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ftrain-resume-") as directory:
        campaign = Campaign(Path(directory), options.jobs)
        results = []
        for name in RUNS:
            for part in (campaign.every_step, campaign.swapped):
                results.append(part(name))
                print(results[-1], flush=True)
    sys.exit(any(result.equal < result.of for result in results))


if __name__ == "__main__":
    main()
