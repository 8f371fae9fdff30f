"""CUDA kernels that draw random numbers with one launch per draw, compiled by NVRTC when first used.

`threefry.cu` is made of the same functions as the CPU's `threefry.c`, so that the bits are the same;
`samplers.cu` and `families.cu` repeat the CPU's tensor operations one by one. Tests compile them for the
CPU and compare them with its draws; no GPU has run them yet. Without NVRTC, or with a driver that cannot
load the kernels, one warning is issued, and tensor operations draw the same numbers with a few hundred
launches.

A launch needs no synchronization and no copy: keys are read on the device; folds and bounds are passed
by value. A CUDA graph can capture it, including the first draw of a process. NVRTC compiles a kind of
draw in 0.2 to 0.3 s of processor time, so nothing is cached on disk.

NVRTC and the driver are called through ctypes: `torch.cuda._compile_kernel` (as of torch 2.14) needs
an installed CUDA toolkit (`CUDA_HOME`), and its launcher truncates integers to 32 bits.

Read next: `threefry.cu`; `_cuda_samplers.py`, the samplers that take parameters.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import struct
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ftrain.core._torch_cuda import raw_stream
from ftrain.core.random._cpu_kernel import NORMAL32, NORMAL64, PAIRS, UNIFORM32, UNIFORM64

_SOURCES = tuple(
    Path(__file__).with_name(name)
    for name in ("threefry.h", "threefry.cu", "elementary.cu", "families.cu", "samplers.cu")
)

# The order of `enum more` in threefry.cu, which follows that of `enum kind`.
UNIFORM16, UNIFORMB16, NORMAL16, NORMALB16, INTEGERS32, INTEGERS64, FOLD = range(10, 17)
EXPONENTIAL, LAPLACE, GUMBEL, GUMBEL_HIGH = range(FOLD + 1, FOLD + 17, 4)  # each of four dtypes
# The order of `enum sampler` in samplers.cu, each of float32 and float64.
SAMPLERS = FOLD + 17
(TRUNCATED, GAMMA, LOG_GAMMA, SHARE, SOFTMAX, LOG, SUMS, CHOICE, PRODUCT, BALL) = range(
    SAMPLERS, SAMPLERS + 20, 2
)
ROUNDS, POISSON, SIGN, BETWEEN, RANGE = (SAMPLERS + i for i in (20, 21, 22, 24, 28))
KEYED_GAMMA, KEYED_LOG_GAMMA, KEYED_POISSON, KEYED_BINOMIAL, KEYED_VON_MISES = range(
    RANGE + 2, RANGE + 12, 2
)
KINDS = RANGE + 12

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

FOLDS = 32  # largest number of folds in one launch; equals FOLDS in threefry.cu
_BLOCK = 256
# A thread draws up to `_EACH` elements, so that it folds and divides only once; it draws fewer if there
# would be fewer than `_FILL` threads, too few to fill a large GPU (an H200 runs 270,336 at a time).
_EACH, _FILL = 8, 2**18

_INVALID_CONTEXT = 201
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED

#: Launch a kernel: the function, the number of blocks, the threads of a block, `struct task`.
Launch = Callable[[Any, int, int, bytes], None]


class CudaKernel:
    """Kernels that draw random numbers on one CUDA device."""

    uniforms: ClassVar = {
        torch.float32: UNIFORM32,
        torch.float64: UNIFORM64,
        torch.float16: UNIFORM16,
        torch.bfloat16: UNIFORMB16,
    }
    normals: ClassVar = {
        torch.float32: NORMAL32,
        torch.float64: NORMAL64,
        torch.float16: NORMAL16,
        torch.bfloat16: NORMALB16,
    }

    def __init__(self, load: Callable[[int], Any], launch: Launch) -> None:
        self._load, self._launch = load, launch
        # Loading this kernel shows immediately whether the other kernels can be loaded.
        self._functions: dict[int, Any] = {FOLD: load(FOLD)}

    def draw(
        self, kind: int, key: Tensor, folds: Sequence[int], out: Tensor, a: float = 0, b: float = 0
    ) -> Tensor:
        """Fill `out` `(*batch, ...)` with draws of a kind (`BITS8`, ...) for keys `(*batch, 2)`."""
        count = out.numel()
        if count:
            count = count >> 1 if kind == PAIRS else count
            self._run(kind, key, folds, None, out, count, a=a, b=b)
        return out

    def sample(
        self, family: int, key: Tensor, folds: Sequence[int], out: Tensor, a: float, b: float
    ) -> Tensor:
        """Fill `out` `(*batch, ...)`, of any float dtype, with draws of a family (`LAPLACE`, ...)."""
        return self.draw(family + _DTYPES.index(out.dtype), key, folds, out, a, b)

    def randint(
        self, key: Tensor, folds: Sequence[int], out: Tensor, base: int, span: int
    ) -> Tensor:
        """Fill `out` `(*batch, ...)` of any integer dtype with `base + (random bits mod span)`."""
        count = out.numel()
        if count:
            kind = INTEGERS64 if out.itemsize == 8 else INTEGERS32
            self._run(kind, key, folds, None, out, count, base, span)
        return out

    def fold(self, key: Tensor, folds: Sequence[int], data: Tensor | None, out: Tensor) -> Tensor:
        """Fold `folds` (ints) and then `data` (integers `(*batch)`) into the keys `(*batch, 2)`."""
        rows = out.numel() >> 1
        if rows:
            self._run(FOLD, key, folds, data, out, rows)
        return out

    def _run(
        self,
        kind: int,
        key: Tensor,
        folds: Sequence[int],
        data: Tensor | None,
        out: Tensor,
        count: int,
        base: int = 0,
        span: int = 0,
        a: float = 0.0,
        b: float = 0.0,
    ) -> None:
        """Launch a kernel for `count` elements; with more than 32 folds, launch fold kernels first."""
        key, folds, rows, key_row, key_word = self._keys(key, folds)
        address = data_row = data_size = 0
        if data is not None:
            data = data if data.ndim < 2 else data.contiguous()
            address, data_size = data.data_ptr(), data.itemsize
            data_row = data.stride(-1) if data.ndim else 0
            data_size = -data_size if data.dtype.is_signed else data_size
        each = count // rows
        per_row = each if count <= _FILL else -(-each // _EACH)
        parameters = _packer(len(folds)).pack(
            *(key.data_ptr(), key_row, key_word, address, data_row, data_size, out.data_ptr()),
            *(rows, each, per_row, base, span, out.itemsize, a, b, 0, 0, 0, 0, len(folds), *folds),
        )
        self._start(kind, -(-rows * per_row // _BLOCK), _BLOCK, parameters)

    def sampler(
        self,
        kind: int,
        key: Tensor | None,
        folds: Sequence[int],
        out: Tensor,
        parameters: Sequence[tuple[Tensor | None, int]] = (),
        *,
        base: int = 0,
        span: int = 0,
        a: float = 0.0,
        b: float = 0.0,
        work: Tensor | None = None,
        inner: int = 0,
        group: int = 0,
    ) -> Tensor:
        """Fill `out` by a kernel of samplers.cu, with one launch.

        Args:
            kind: the kernel.
            key: keys `(*batch, 2)`; `None` for a function of the parameters only.
            folds: integers to fold into the keys first.
            out: the result, or memory of its shape that the kernel does not use.
            parameters: at most two tensors, each with the step from one element to the next; or `None`
                and the word of a number.
            base: first integer of the kernel; the others are `span` and `inner`.
            span: see base.
            a: first number of the kernel; the other is `b`.
            b: see a.
            work: memory to compute in.
            inner: see base.
            group: the elements that a block of threads computes together; 0 if each is computed alone.
        """
        rows, key_row, key_word, address = 1, 0, 0, 0
        if not out.numel():
            return out
        for tensor, _ in parameters:
            if tensor is not None and tensor.device != out.device:
                raise ValueError(
                    f"expected the parameters of a draw on {out.device}, the device of its key, got one "
                    f"on {tensor.device}. Write x.to(key.device)."
                )
        if key is not None:
            key, folds, rows, key_row, key_word = self._keys(key, folds)
            address = key.data_ptr()
        (first, step), (other, other_step) = (*parameters, (None, 0), (None, 0))[:2]
        each = out.numel() // rows
        if group:
            count, per_row = group, each // group
            blocks = rows * per_row
            threads = min(_BLOCK, max(32, -(-group // 64) * 32))
        else:
            count, per_row = each, each if out.numel() <= _FILL else -(-each // _EACH)
            blocks, threads = -(-rows * per_row // _BLOCK), _BLOCK
        parameters_of_launch = _packer(len(folds)).pack(
            *(address, key_row, key_word, _address(first), step, 0, out.data_ptr()),
            *(rows, count, per_row, base, span, out.itemsize, a, b),
            *(_address(other), other_step, _address(work), inner, len(folds), *folds),
        )
        self._start(kind, blocks, threads, parameters_of_launch)
        return out

    def _keys(
        self, key: Tensor, folds: Sequence[int]
    ) -> tuple[Tensor, Sequence[int], int, int, int]:
        """Return the keys, the remaining folds (at most 32), the number of keys and their strides."""
        while len(folds) > FOLDS:
            key = self.fold(key, folds[:FOLDS], None, key.new_empty(key.shape))
            folds = folds[FOLDS:]
        if key.ndim == 1:
            return key, folds, 1, 0, key.stride(0)
        key = key if key.ndim == 2 else key.contiguous()
        return key, folds, key.numel() >> 1, key.stride(-2), key.stride(-1)

    def _start(self, kind: int, blocks: int, threads: int, parameters: bytes) -> None:
        function = self._functions.get(kind)
        if function is None:
            function = self._functions[kind] = self._load(kind)
        self._launch(function, blocks, threads, parameters)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@functools.cache
def _packer(folded: int) -> struct.Struct:
    """Return the packer of kernel arguments (`task` in threefry.cu), with `folded` ints to fold in."""
    return struct.Struct(f"@PqqPqqP QQQ qqq dd PqPQ I{folded}I{4 * (FOLDS - folded)}x4x")


def kernel(device: torch.device) -> CudaKernel | None:
    """Return the kernels of a CUDA device, `None` if unavailable; the first call compiles them."""
    index = device.index
    return _kernels[index] if index in _kernels else _first(index)


_kernels: dict[int, CudaKernel | None] = {}
_lock = threading.Lock()


def _first(index: int) -> CudaKernel | None:
    with _lock:
        if index not in _kernels:
            try:
                _kernels[index] = _load(index)
            except (OSError, _NoKernelError, AttributeError) as error:
                _kernels[index] = None
                warnings.warn(
                    f"ftrain draws random numbers on cuda:{index} without its CUDA kernels: the numbers "
                    f"are the same, but a draw launches some hundred kernels instead of one. {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
    return _kernels[index]


class _NoKernelError(RuntimeError):
    """Error for unavailable CUDA kernels, with a sentence that gives the reason as its message."""


def _load(index: int) -> CudaKernel:
    """Compile and load the kernels for a CUDA device, without a cache; raise if that fails."""
    if torch.version.cuda is None:
        raise _NoKernelError("This build of torch is not for NVIDIA's CUDA.")
    major, minor = torch.cuda.get_device_capability(index)
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    context = ctypes.c_void_p()  # torch's CUDA context, which is never released
    _check(driver, driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), ctypes.c_int(index)))

    def load(kind: int) -> ctypes.c_void_p:
        binary = compiled(kind, f"sm_{major}{minor}")
        with _current(driver, context), _uncaptured(driver):
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            _check(driver, driver.cuModuleLoadData(ctypes.byref(module), binary))
            # This loads the function now instead of at its first launch.
            name = b"ftrain_sampler" if kind >= SAMPLERS else b"ftrain_kernel"
            _check(driver, driver.cuModuleGetFunction(ctypes.byref(function), module, name))
        return function

    return CudaKernel(load, _launcher(driver, index, context))


@contextlib.contextmanager
def _current(driver: ctypes.CDLL, context: ctypes.c_void_p) -> Iterator[None]:
    """Make a CUDA context current in this thread inside the `with` block."""
    _check(driver, driver.cuCtxPushCurrent_v2(context))
    try:
        yield
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


@contextlib.contextmanager
def _uncaptured(driver: ctypes.CDLL) -> Iterator[None]:
    """Allow calls that a running CUDA graph capture forbids, such as allocations by the CUDA driver."""
    mode = ctypes.c_int(_RELAXED)
    driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        yield
    finally:
        driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))


def _launcher(driver: ctypes.CDLL, index: int, context: ctypes.c_void_p) -> Launch:
    """Return the function that launches a kernel on the current stream of a device."""
    launch = driver.cuLaunchKernel
    pointer, count = ctypes.c_void_p, ctypes.c_uint
    launch.argtypes = (pointer, *[count] * 7, pointer, pointer, pointer)
    current_device, byref, text = torch.cuda.current_device, ctypes.byref, ctypes.c_char_p

    def run(function: Any, blocks: int, threads: int, parameters: bytes) -> None:
        task = byref(text(parameters))  # an array with a pointer to the only argument, a struct
        how = (function, blocks, 1, 1, threads, 1, 1, 0, raw_stream(index), task, None)
        status = launch(*how) if current_device() == index else _INVALID_CONTEXT
        if status == _INVALID_CONTEXT:  # the context of another device, or none in this thread
            with _current(driver, context):
                status = launch(*how)
        if status:
            raise RuntimeError(f"CUDA error: {_error(driver, status)}, in a draw on cuda:{index}")

    return run


def _check(driver: ctypes.CDLL, status: int) -> None:
    if status:
        raise _NoKernelError(f"The driver cannot load the kernels: {_error(driver, status)}.")


def _error(driver: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    return text.value.decode() if text.value else f"error {status}"


@functools.cache
def compiled(kind: int, architecture: str) -> bytes:
    """Return the machine code of the kernels for an architecture such as `sm_90`."""
    nvrtc = _nvrtc()
    options = (
        *(f"--gpu-architecture={architecture}", f"--define-macro=KIND={kind}", "--std=c++17"),
        # The bits equal the CPU's with these flags: no contraction, IEEE division and square root,
        # subnormals.
        *("--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false"),
        "--device-as-default-execution-space",
    )
    sources = _SOURCES if kind >= SAMPLERS else _SOURCES[:2]
    source = "\n".join(path.read_text() for path in sources).encode()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"threefry.cu", 0, None, None)
    try:
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), array):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value + 1)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise _NoKernelError(f"NVRTC failed for {architecture}: {log.value.decode()}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        if nvrtc.nvrtcGetCUBIN(program, binary) or not size.value:
            raise _NoKernelError(f"NVRTC made no machine code for {architecture}.")
        return binary.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _nvrtc() -> ctypes.CDLL:
    """Return the NVRTC library of torch's CUDA version, from a Python package or from the system."""
    major = str(torch.version.cuda).partition(".")[0]
    windows = sys.platform == "win32"
    file = f"nvrtc64_{major}0_0.dll" if windows else f"libnvrtc.so.{major}"
    # Folders of torch's wheels: nvidia/cu13/lib, nvidia/cuda_nvrtc/lib.
    packages = [path for folder in sys.path for path in Path(folder, "nvidia").glob(f"*/*/{file}")]
    for path in (*packages, Path(file), Path("/usr/local/cuda/lib64", file)):
        try:
            # NVRTC opens this library by its name, which is found if the library is already loaded.
            for builtins in sorted(path.parent.glob(f"libnvrtc-builtins.so.{major}.*")):
                ctypes.CDLL(str(builtins))
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    raise _NoKernelError(
        f"{file} (NVRTC of CUDA {torch.version.cuda}) was not found. Install nvidia-cuda-nvrtc."
    )
