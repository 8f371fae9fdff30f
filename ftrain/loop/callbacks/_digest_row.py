"""Log row with digests of the state and the batch, by which `ftrain diff` compares runs."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.checkpoint._determinism import fingerprint, versions
from ftrain.core import tree
from ftrain.core._leaf_digest import row_digests

__all__ = ["SPLIT", "digest_row"]

#: The split of the rows of digests.
SPLIT = "digest"

_MOST_ROWS = 256  # rows of a batch with a digest each, which takes 1 µs and 11 bytes of the log


def digest_row(state: Any, batch: Any = None) -> dict[str, Any]:
    """Return a log row with digests of a state's leaves, of its batch's leaves and of the batch's rows.

    The leaves are copied to the host, which waits for the device.

    Args:
        state: the training state after a step, or before the first step.
        batch: the batch of that step; `None` before the first step: the row then holds the versions and
            settings of the process instead.
    """
    row: dict[str, Any] = {"state": tree.digests(state)}
    if batch is None:
        return {**row, "environment": {**versions(), **fingerprint()}}
    named = dict(zip(tree.paths(batch), tree.leaves(batch), strict=True))
    tensors = {path: leaf for path, leaf in named.items() if isinstance(leaf, torch.Tensor)}
    rows = {
        path: list(row_digests(leaf))
        for path, leaf in tensors.items()
        if leaf.ndim and len(leaf) <= _MOST_ROWS
    }
    return {**row, "batch": tree.digests(batch), "rows": rows}
