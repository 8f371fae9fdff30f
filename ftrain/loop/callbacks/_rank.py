"""Detection of the main process of a distributed run, the only one that prints and writes files."""

from __future__ import annotations

import os

import torch.distributed

__all__ = ["is_main"]


def is_main() -> bool:
    """Return True if this process has rank 0 or is the only process of the run.

    Only this process prints and writes files.

    Example:
        >>> is_main()
        True
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return bool(torch.distributed.get_rank() == 0)
    # torchrun sets RANK before torch.distributed is initialized
    return os.environ.get("RANK", "0") in ("", "0")
