"""C library that draws random numbers, compiled once on each machine and called through ctypes.

Without it (no compiler, or a cache folder that cannot be written), one warning is issued and
`_threefry.py` draws the same numbers. A million-element mask takes 1.0 ms on one core with the kernel,
5.8 ms with `torch.empty(n).bernoulli_(0.1)`, 80 ms with `_threefry.py`.

Read next: `threefry.c`, and `ftrain/core/_c_library.py`, which compiles it.
"""

from __future__ import annotations

import ctypes
import struct
import subprocess
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ftrain.core._c_library import NoLibraryError, load, reason
from ftrain.core.random._threefry import low_word

# The order of `enum kind` in threefry.h.
BITS8, BITS16, BITS32, BITS64, PAIRS, BELOW, UNIFORM32, UNIFORM64, NORMAL32, NORMAL64 = range(10)

_SOURCES = [Path(__file__).with_name(name) for name in ("threefry.c", "threefry.h")]
_lock = threading.Lock()


class Kernel:
    """Functions of one compiled C library, which fill CPU tensors with random numbers."""

    uniforms: ClassVar = {torch.float32: UNIFORM32, torch.float64: UNIFORM64}
    normals: ClassVar = {torch.float32: NORMAL32, torch.float64: NORMAL64}

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._draw = library.ftrain_draw
        self._draw.restype = None
        self._draw.argtypes = (
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64),
            *(ctypes.c_int64, ctypes.c_double, ctypes.c_double, ctypes.c_void_p, ctypes.c_int),
        )
        self._randint = library.ftrain_randint
        self._randint.restype = None
        self._randint.argtypes = (
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64),
            *(ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
        )
        self._fold = library.ftrain_fold
        self._fold.restype = None
        self._fold.argtypes = (
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64),
            *(ctypes.c_void_p, ctypes.c_void_p),
        )

    def draw(
        self, kind: int, key: Tensor, folds: Sequence[int], out: Tensor, a: float = 0, b: float = 0
    ) -> Tensor:
        """Fill `out` `(*batch, ...)` with draws of a kind (`BITS8`, ...) for keys `(*batch, 2)`."""
        key = key.contiguous()
        rows = key.numel() >> 1
        count = out.numel()
        if count:
            count = (count >> 1 if kind == PAIRS else count) // rows
            packed = struct.pack(f"{len(folds)}I", *folds)
            threads = torch.get_num_threads() if count * rows > 32768 else 1
            self._draw(
                kind, key.data_ptr(), rows, packed, len(folds), count, a, b, out.data_ptr(), threads
            )
        return out

    def randint(
        self, key: Tensor, folds: Sequence[int], out: Tensor, base: int, span: int
    ) -> Tensor:
        """Fill `out` `(*batch, ...)`, of any integer dtype, with `base + (random bits mod span)`."""
        key = key.contiguous()
        rows, count = key.numel() >> 1, out.numel()
        if count:
            packed = struct.pack(f"{len(folds)}I", *folds)
            threads = torch.get_num_threads() if count > 32768 else 1
            self._randint(
                key.data_ptr(), rows, packed, len(folds), count // rows, base, span,
                out.data_ptr(), out.itemsize, threads,
            )  # fmt: skip
        return out

    def fold(self, key: Tensor, folds: Sequence[int], data: Tensor | None, out: Tensor) -> Tensor:
        """Fold `folds`, then `data` `(*batch)`, into keys `(*batch, 2)`; write the new keys to `out`."""
        packed = struct.pack(f"{len(folds)}I", *folds)
        key = key.contiguous()
        data = None if data is None else low_word(data).contiguous()
        address = None if data is None else data.data_ptr()
        rows = key.numel() >> 1
        self._fold(key.data_ptr(), rows, packed, len(folds), address, out.data_ptr())
        return out


def kernel() -> Kernel | None:
    """Return the C kernel, or `None` if it is unavailable; the first call compiles or loads it."""
    return _kernel if _kernel is not _UNTRIED else _first()


class _Untried(Kernel):
    def __init__(self) -> None:
        pass


_UNTRIED = _Untried()
_kernel: Kernel | None = _UNTRIED


def _first() -> Kernel | None:
    global _kernel  # noqa: PLW0603  # once a process
    with _lock:
        if _kernel is _UNTRIED:
            try:
                _kernel = load(_SOURCES, Kernel, _answers)
            except (OSError, subprocess.SubprocessError, NoLibraryError) as error:
                _kernel = None
                warnings.warn(
                    "ftrain draws random numbers without its C kernel: the numbers are the same, but "
                    f"take about seventy times as long on a CPU. {reason(error)}",
                    RuntimeWarning,
                    stacklevel=2,
                )
    return _kernel


def _answers(kernel: Kernel) -> bool:
    """Return True if the kernel gives Random123's known answer for counter 0 and key 0."""
    zero = torch.zeros(2, dtype=torch.int32, device="cpu")
    pair = kernel.draw(PAIRS, zero, (), torch.empty_like(zero))
    return [word & 0xFFFFFFFF for word in pair.tolist()] == [0x6B200159, 0x99BA4EFE]
