"""Choice of torch's own CPU kernels for recurrent layers that oneDNN does not support.

Each docstring names the torch versions that have the API.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator

import torch

from ftrain.core._torch import inside_functorch, inside_vmap

__all__ = ["recurrent_kernels"]


@contextlib.contextmanager
def recurrent_kernels(device_type: str) -> Iterator[None]:
    """Turn oneDNN off in a `with` block if it cannot run recurrent layers there (torch 2.13).

    Under float16 autocast, and under bfloat16 without AVX-512, oneDNN raises "could not create a
    primitive descriptor"; for a gradient inside vmap, "Expected a proper Tensor but got None ...
    'workspace'".
    """
    cast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    refused = cast == torch.float16 or (cast == torch.bfloat16 and not _bfloat16_lstm())
    refused = refused or (inside_vmap() and inside_functorch() != "vmap")
    refused = refused and device_type == "cpu" and torch._C._get_mkldnn_enabled()
    if not refused:
        yield
        return
    # Not torch.backends.mkldnn.flags, which warns about TF32 on the way.
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


@functools.cache
def _bfloat16_lstm() -> bool:
    """Return True if oneDNN has a bfloat16 LSTM for this processor's instructions.

    An LSTM is run in a thread of its own, in which no mode or transform of the caller applies.
    """
    found = []

    def run() -> None:
        zeros = functools.partial(torch.zeros, device="cpu", dtype=torch.float32)
        weights = [zeros(4, 1), zeros(4, 1), zeros(4), zeros(4)]
        x, state = zeros(1, 1, 1), [zeros(1, 1, 1)] * 2
        with torch.autocast("cpu", torch.bfloat16), contextlib.suppress(RuntimeError):
            torch.lstm(x, state, weights, True, 1, 0.0, False, False, False)
            found.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return bool(found)
