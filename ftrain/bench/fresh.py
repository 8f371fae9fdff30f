"""Fresh processes, each with a given cache of compiled code, to measure the latency of first calls."""

from __future__ import annotations

import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Finished", "run_fresh"]


class Finished(NamedTuple):
    """Output and processor time of a process that has ended.

    Attributes:
        output: the last line that it printed.
        started: the time of its start, as `time.time()`.
        work: processor seconds on all cores, compilers included; other load hardly changes them.
    """

    output: str
    started: float
    work: float


def run_fresh(
    command: Sequence[str],
    cache: pathlib.Path,
    *,
    folder: pathlib.Path | None = None,
    limit: float = 600.0,
) -> Finished:
    """Run a command in a new process that caches compiled code in a given directory.

    If `PYTHONDONTWRITEBYTECODE` is set, bytecode is written to that directory as well, for the second
    process. Without it, each process compiles torch's Python again, which takes two seconds.

    Args:
        command: the program and its arguments.
        cache: the directory of compiled code; if it is empty, the process compiles everything.
        folder: the current directory of the process; default: the current directory.
        limit: seconds after which the process is killed.

    Raises:
        RuntimeError: the process failed; the message ends with its standard error.
        subprocess.TimeoutExpired: the process took longer than `limit`.
    """
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "FTRAIN_CACHE_DIR": str(cache / "ftrain"),
        "TMPDIR": str(cache),
    }
    if sys.dont_write_bytecode:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(cache / "bytecode")
    before, started = _work(), time.time()
    done = subprocess.run(
        list(command),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"{command[0]!r} failed with exit status {done.returncode}; its errors end with:\n"
            f"{done.stderr[-3000:].rstrip()}"
        )
    return Finished(done.stdout.splitlines()[-1], started, _work() - before)


def _work() -> float:
    """Return the processor seconds of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
