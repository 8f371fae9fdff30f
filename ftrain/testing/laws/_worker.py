"""Program of a new process that repeats calls: `python -m ftrain.testing.laws._worker JOB RESULT`."""

from __future__ import annotations

import pathlib
import pickle
import runpy
import sys
import types
from typing import Any

import torch

from ftrain.testing.laws._subject import imported


def run(source: str, target: str) -> None:
    """Read a pickled `Job`, run it, and write its pickled result."""
    job: Any = pickle.loads(pathlib.Path(source).read_bytes())
    sys.path[:] = [*dict.fromkeys([*job.path, *sys.path])]
    torch.set_num_threads(job.threads)
    if isinstance(job.subject, str):
        subject = imported(job.subject)
    else:
        _load_main(job.main)
        subject = pickle.loads(job.subject)
    result = job.task(subject, pickle.loads(job.payload))
    pathlib.Path(target).write_bytes(pickle.dumps(result))


def _load_main(path: str | None) -> None:
    """Run the main program's file as a module, so that pickled functions of `__main__` are found."""
    if path is None or not path.endswith(".py"):
        return
    module = types.ModuleType("__mp_main__")  # the name that multiprocessing uses in new processes
    module.__dict__.update(runpy.run_path(path, run_name="__mp_main__"))
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


if __name__ == "__main__":
    run(*sys.argv[1:])
