"""Output of distributed runs: only the process of rank 0 writes."""

from __future__ import annotations

import os

import torch.distributed

__all__ = ["is_main"]


def is_main() -> bool:
    """Return True if this process prints and writes; a run of one process always does.

    Example:
        >>> is_main()
        True
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return bool(torch.distributed.get_rank() == 0)
    return os.environ.get("RANK", "0") in ("", "0")  # torchrun sets it before the group is there
