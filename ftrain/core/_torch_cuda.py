"""Private torch APIs: CUDA streams.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["raw_stream"]


def _public(device: int) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream)


#: Return the address of the current stream of a device, by its index (1.8 and later, in builds for CUDA;
#: otherwise from the stream's Python object).
raw_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _public)
