"""Finish a run in a new process: `python -m tests.cuda.fresh MODEL PRECISION MODE CHECKPOINT`.

Prints the digest of the state after the steps that `test_laws.py` takes after the saved one.
"""

from __future__ import annotations

import os
import sys

import torch

from ftrain import checkpoint, tree

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def finished(model: str, precision: str, mode: str, path: str) -> str:
    from tests.cuda.test_laws import start

    step, state, batches = start(model, precision, mode)
    state, _ = checkpoint.load(path, state)
    for batch in batches[1:]:
        state, _ = step(state, batch)
    return tree.digest(state)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    print(finished(*sys.argv[1:]))
