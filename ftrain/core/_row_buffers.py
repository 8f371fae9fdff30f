"""One copy of each buffer per row of a `torch.vmap`, for modules that write mapped values to buffers.

Torch cannot write a mapped value into a tensor that is not mapped, such as the statistics of a BatchNorm
whose input is mapped and whose state is not. If a function fails for this reason, it runs again with
separate buffers for each row. Making these copies for every function would need memory, mostly in vain.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

from ftrain.core import _torch
from ftrain.core._torch_levels import lift, lower

__all__ = ["RowBuffers", "copy_of", "is_refused_write"]

T = TypeVar("T")

_TRANSFORMS = torch.vmap.__code__.co_filename


class _Mapping(threading.local):
    is_on = False


_mapping = _Mapping()


class RowBuffers:
    """Callable that runs a function and, if vmap refuses a write, runs it again with buffers per row."""

    def __init__(self) -> None:
        self._are_needed = False

    def __call__(self, run: Callable[[], T]) -> T:
        """Call `run`; call it once more, with buffers per row, if torch refused a write."""
        if not self._are_needed:
            try:
                return run()
            except RuntimeError as error:
                if _mapping.is_on or not is_refused_write(error):
                    raise
        outer, _mapping.is_on = _mapping.is_on, True
        try:
            result = run()
        finally:
            _mapping.is_on = outer
        self._are_needed = True
        return result


def is_refused_write(error: Exception) -> bool:
    """Return True for torch's error for a write of mapped values to an unmapped tensor under vmap."""
    text = str(error)
    is_refused = (
        text.startswith("Batch norm got a batched tensor as input while the running_mean")
        or (text.startswith("vmap: ") and "is not possible because there exists a Tensor" in text)
        # Inside a gradient transform, torch's message has the shapes of all rows.
        or (text.startswith("output with shape") and "doesn't match the broadcast shape" in text)
    )
    return is_refused and (_torch.inside_vmap() or _was_transformed(error))


def _was_transformed(error: Exception) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == _TRANSFORMS for frame, _ in frames)


def copy_of(buffer: torch.Tensor) -> torch.Tensor:
    """Return a copy of a buffer for a module to write to, batched under vmap if each row needs one."""
    if not _mapping.is_on or not _torch.inside_vmap():
        return buffer.clone()
    rows = lift(lower(torch.ones((), dtype=torch.bool, device=buffer.device)))
    return torch.where(rows, buffer, buffer)  # keeps all bits, also of NaN and -0.0
