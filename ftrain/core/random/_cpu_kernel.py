"""C library that draws random numbers, compiled once on each machine and called through ctypes.

Without it (no compiler, or a cache folder that cannot be written), one warning is issued and
`_threefry.py` draws the same numbers. A million-element mask takes 1.0 ms on one core with the kernel,
5.8 ms with `torch.empty(n).bernoulli_(0.1)`, 80 ms with `_threefry.py`.

Read next: `threefry.c`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ftrain.core.random._threefry import low_word

# The order of `enum kind` in threefry.h.
BITS8, BITS16, BITS32, BITS64, PAIRS, BELOW, UNIFORM32, UNIFORM64, NORMAL32, NORMAL64 = range(10)

_SOURCE = Path(__file__).with_name("threefry.c")
_HEADER = Path(__file__).with_name("threefry.h")
# Contraction is disabled: a fused multiply-add rounds only once, so that bits would depend on the
# machine.
_FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
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
                _kernel = _load()
            except (OSError, subprocess.SubprocessError, _NoKernelError) as error:
                _kernel = None
                warnings.warn(
                    "ftrain draws random numbers without its C kernel: the numbers are the same, but "
                    f"take about seventy times as long on a CPU. {_reason(error)}",
                    RuntimeWarning,
                    stacklevel=2,
                )
    return _kernel


class _NoKernelError(Exception):
    """Error for an unavailable C kernel, with a sentence that gives the reason as its message."""


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"The compiler failed: {shlex.join(error.cmd)}\n{error.stderr}"
    if isinstance(error, PermissionError | FileExistsError | NotADirectoryError) or (
        isinstance(error, OSError) and error.errno == 30  # read-only file system
    ):
        return (
            f"The cache folder cannot be written ({error}). Name another one in FTRAIN_CACHE_DIR."
        )
    return str(error)


def _load() -> Kernel:
    """Return the fastest library that compiles, loads and passes its check."""
    compiler = _compiler()
    failure: Exception = _NoKernelError("")
    # OpenMP is not linked: its symbols are resolved by the runtime that torch has loaded, so that both
    # share one pool of threads. If torch has no OpenMP runtime (macOS), the kernel uses one thread.
    for extra in (("-march=native", "-fopenmp"), ("-march=native",), ()):
        try:
            return _library(compiler, extra)
        except (PermissionError, FileExistsError, NotADirectoryError):
            raise  # an error of the cache folder does not depend on the flags
        except (OSError, subprocess.CalledProcessError, _NoKernelError) as error:
            failure = error
    raise failure


def _library(compiler: tuple[str, ...], extra: tuple[str, ...]) -> Kernel:
    """Return the library compiled with the flags `extra`, from the cache if it holds an intact copy."""
    path = cache_folder() / f"threefry-{_fingerprint(compiler, extra)}.so"
    cached = path.exists()
    if not cached:
        _compile(compiler, extra, path)
    try:
        found = Kernel(path)
    except OSError:
        if not cached:
            raise
        _compile(compiler, extra, path)
        found = Kernel(path)
    if not _answers(found):
        raise _NoKernelError(f"The compiled library {path} draws wrong numbers. Delete it.")
    return found


def cache_folder() -> Path:
    """Return the directory of compiled kernels: FTRAIN_CACHE_DIR, or one in the user's cache."""
    named = os.environ.get("FTRAIN_CACHE_DIR")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftrain"
    except RuntimeError as error:
        raise _NoKernelError(
            "The home folder is unknown. Set FTRAIN_CACHE_DIR to a folder for the cache."
        ) from error


def _compiler() -> tuple[str, ...]:
    named = os.environ.get("CC")
    for command in [named] if named else ["cc", "gcc", "clang", "c++", "g++", "clang++"]:
        words = shlex.split(command)
        found = shutil.which(words[0])
        if found:
            language = "c++" if command.endswith("++") else "c"
            return (found, *words[1:], "-x", language)
    raise _NoKernelError(
        f"No C compiler was found: CC names {named}, which is not on the PATH. Install it, or unset CC."
        if named
        else "No C compiler was found (cc, gcc, clang). Install one, or name it in CC."
    )


def _fingerprint(compiler: tuple[str, ...], extra: tuple[str, ...]) -> str:
    """Return the cache key of the machine code: source, compiler, flags, processor."""
    binary = Path(compiler[0]).resolve()
    status = binary.stat()
    parts = (
        *(_SOURCE.read_text(), _HEADER.read_text()),
        *(compiler, _FLAGS, extra),
        *(str(binary), status.st_size, status.st_mtime_ns),
        *(sys.platform, platform.machine(), _processor()),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


def _processor() -> str:
    """Return the processor features that -march=native depends on, since machines may share a cache."""
    try:
        with open("/proc/cpuinfo") as lines:
            wanted = ("model name", "flags", "Features", "CPU part")
            seen: dict[str, str] = {}
            for line in lines:
                if not line.strip():
                    break  # assumes that all cores equal the first one
                if line.startswith(wanted):
                    name, _, value = line.partition(":")
                    seen[name.strip()] = value.strip()
            return repr(seen)
    except OSError:
        return platform.processor()


def _compile(compiler: tuple[str, ...], extra: tuple[str, ...], path: Path) -> None:
    """Compile to a temporary file and rename it, so that concurrent processes do not interfere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        object_file, library = Path(scratch) / "threefry.o", Path(scratch) / path.name
        steps = (
            (*compiler, *_FLAGS, *extra, "-c", str(_SOURCE), "-o", str(object_file)),
            (compiler[0], "-shared", str(object_file), "-o", str(library), "-lm"),
        )
        for step in steps:
            subprocess.run(step, check=True, capture_output=True, text=True, timeout=120)
        os.replace(library, path)


def _answers(kernel: Kernel) -> bool:
    """Return True if the kernel gives Random123's known answer for counter 0 and key 0."""
    zero = torch.zeros(2, dtype=torch.int32, device="cpu")
    pair = kernel.draw(PAIRS, zero, (), torch.empty_like(zero))
    return [word & 0xFFFFFFFF for word in pair.tolist()] == [0x6B200159, 0x99BA4EFE]
