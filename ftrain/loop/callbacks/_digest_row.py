"""Log row with digests of the state and the batch, by which `ftrain diff` compares runs."""

from __future__ import annotations

from typing import Any

import torch

from ftrain.checkpoint._determinism import fingerprint, versions
from ftrain.core import tree
from ftrain.core._leaf_digest import row_digests

__all__ = ["SPLIT", "digest_row"]

#: The split of these rows.
SPLIT = "digest"

_MOST_ROWS = 256  # of a batch; a digest of each takes 1 µs and 11 bytes of the log


def digest_row(state: Any, batch: Any = None) -> dict[str, Any]:
    """Return `{path: digest}` for the leaves of a state and of the batch of its step.

    Without a batch, for the state before the first step: with the versions and settings of the process.
    Copies the leaves to the host, which waits for the device.
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
