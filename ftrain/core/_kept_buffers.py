"""Snapshot of buffers at the start of an activation-checkpointed region, for its recomputation."""

from __future__ import annotations

from collections.abc import Collection

import torch

from ftrain.core._torch_tensors import version
from ftrain.core.errors import ImpureFunctionError

__all__ = ["KeptBuffers"]

# Buffers of up to this number of elements are copied at the start of each region (statistics, but not
# masks).
SMALL = 65_536


class KeptBuffers:
    """Snapshot of a model's buffers, from which a later forward pass can start again.

    A forward pass may write to its buffers afterwards, as BatchNorm and spectral normalization do. Small
    buffers are copied; a write to a large one is detected by its version counter.

    Args:
        tensors: buffers and frozen parameters, by name.
        buffers: the names of those that a forward pass may write to.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], buffers: Collection[str]) -> None:
        self._tensors = tensors
        self._versions = {name: version(tensors[name]) for name in buffers}
        self._copies = {
            name: tensors[name].clone() for name in buffers if tensors[name].numel() <= SMALL
        }

    def are_current(self) -> bool:
        """Return True if no buffer was written to after the snapshot."""
        return all(version(self._tensors[name]) == v for name, v in self._versions.items())

    def restored(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the snapshot; raise if a large buffer was written to since then.

        Raises:
            ImpureFunctionError: a large buffer was written to after the snapshot.
        """
        for name, before in self._versions.items():
            if name not in self._copies and version(self._tensors[name]) != before:
                raise ImpureFunctionError(
                    f"the model wrote to its buffer {name!r} during or after a region under "
                    "activation checkpointing, which the backward pass must compute again. Buffers of "
                    f"up to {SMALL} elements are restored for that, but this one has "
                    f"{self._tensors[name].numel()}. Write to it before the first such region."
                )
        return {**self._tensors, **{name: b.clone() for name, b in self._copies.items()}}
