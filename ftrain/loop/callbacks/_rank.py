"""Which process of a distributed run speaks: the one of rank 0."""

from __future__ import annotations

import os

import torch.distributed

__all__ = ["is_main"]


def is_main() -> bool:
    """Whether this process prints and writes; a run of one process always does.

    >>> is_main()
    True
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return bool(torch.distributed.get_rank() == 0)
    return os.environ.get("RANK", "0") in ("", "0")  # torchrun sets it before the group is there
