"""Context managers that count compilations, host syncs and memory, or make a block deterministic.

    with assert_max_compiles(1):
        for batch in batches:
            state, metrics = step(state, batch)

Read next: `_host_sync.py`, how a read of a tensor's value is recognized.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch

from ftrain.core._torch_dynamo import dynamo_graphs, peak_allocation
from ftrain.core._user_line import show
from ftrain.core.compile._observers import observers
from ftrain.testing._frames import innermost
from ftrain.testing._generators import seeded
from ftrain.testing._host_sync import no_host_sync

__all__ = [
    "Compiles",
    "PeakMemory",
    "assert_max_compiles",
    "assert_no_host_sync",
    "assert_peak_memory",
    "deterministic",
]


@dataclasses.dataclass
class Compiles:
    """Programs that were compiled during a block of `assert_max_compiles`.

    Attributes:
        programs: one text for each program of `ftrain.compile`: its function, the line that called it,
            and the reason if it was not the first.
        graphs: the number of graphs of `torch.compile`; set when the block ends.
    """

    programs: list[str] = dataclasses.field(default_factory=list)
    graphs: int = 0

    @property
    def count(self) -> int:
        """Number of compiled programs of `ftrain.compile` and graphs of `torch.compile`."""
        return len(self.programs) + self.graphs


@contextlib.contextmanager
def assert_max_compiles(n: int) -> Iterator[Compiles]:
    """Raise at the end of a `with` block if more than `n` programs were compiled in it, in any thread.

    Programs of `ftrain.compile` and graphs of `torch.compile` count.

    Args:
        n: the largest number of compilations.

    Returns:
        The programs, filled while the block runs.

    Raises:
        AssertionError: more were compiled; the message lists them with their reasons.

    Example:
        >>> import warnings
        >>> from ftrain import compile
        >>> double = compile(lambda x: 2 * x, backend="eager")
        >>> with assert_max_compiles(1) as compiles:
        ...     for _ in range(3):
        ...         _ = double(torch.ones(2))
        >>> compiles.count
        1
        >>> with warnings.catch_warnings(action="ignore"), assert_max_compiles(0):
        ...     _ = double(torch.ones(3))
        Traceback (most recent call last):
            ...
        AssertionError: expected at most 0 compilations, got 1:
        ...
    """
    compiles, before = Compiles(), dynamo_graphs()

    @contextlib.contextmanager
    def count(name: str, reason: str) -> Iterator[None]:
        frame = innermost(ours=False)
        line = show(frame) if frame is not None else "  (no frame in user code)"
        compiles.programs.append("\n".join([f"`{name}`, called at", line, *filter(None, [reason])]))
        yield

    observers.append(count)
    try:
        yield compiles
    finally:
        observers.remove(count)
        compiles.graphs = dynamo_graphs() - before
    if compiles.count > n:
        listed = [*compiles.programs]
        listed += [f"{compiles.graphs} graphs of torch.compile"] if compiles.graphs else []
        remedy = "Pass arguments of one structure, shape, dtype, device and stride"
        remedy += "; run with TORCH_LOGS=recompiles for the reasons of torch.compile." * bool(
            compiles.graphs
        )
        raise AssertionError(
            f"expected at most {n} compilations, got {compiles.count}:\n"
            + "\n".join(listed)
            + f"\n{remedy.removesuffix('.')}."
        )


@contextlib.contextmanager
def assert_no_host_sync() -> Iterator[None]:
    """Raise if a `with` block reads a tensor's value on the host, which waits for the accelerator.

    Reads are `.item()`, `bool(tensor)`, `.tolist()`, `.numpy()`, `print(tensor)`, and operators whose
    output shape depends on values: `nonzero`, `x[mask]`, `unique`. On the CPU, reads in the code that
    calls ftrain and torch are recognized, so that a test needs no accelerator; ftrain's own reads of CPU
    tensors do not count. With CUDA, torch's sync debug mode is on as well. Compilation inside the block
    is excluded. Machine code of inductor is not examined, because it contains no reads by Python.

    Raises:
        AssertionError: at the read; the message names the operation and the line.

    Example:
        >>> loss = torch.tensor(1.5)
        >>> with assert_no_host_sync():
        ...     total = loss + loss
        >>> with assert_no_host_sync():
        ...     total = loss.item()
        Traceback (most recent call last):
            ...
        AssertionError: aten._local_scalar_dense: expected no read of a tensor's value, got one at
        ...
    """
    with no_host_sync():
        yield


@dataclasses.dataclass
class PeakMemory:
    """Memory that a block of `assert_peak_memory` allocated.

    Attributes:
        peak: the largest number of bytes allocated at one time, minus those allocated at the start;
            `None` until the block ends.
    """

    peak: int | None = None


@contextlib.contextmanager
def assert_peak_memory(
    limit: int | None, *, device: torch.device | str = "cpu"
) -> Iterator[PeakMemory]:
    """Raise at the end of a `with` block if torch's memory grew by more than `limit` bytes at its peak.

    Memory allocated before the block does not count; memory released in the block is subtracted.

    Args:
        limit: the largest number of bytes; `None` to measure only.
        device: the device, "cpu" or a CUDA device. The CPU's allocations come from torch's profiler,
            which costs about a microsecond for each operator and cannot be nested.

    Returns:
        The measured memory, set when the block ends.

    Raises:
        AssertionError: more was allocated.
        ValueError: the device is neither the CPU nor CUDA.

    Example:
        >>> x = torch.zeros(1000)
        >>> with assert_peak_memory(8192) as memory:
        ...     y = (x + 1) * 2
        >>> 4000 <= memory.peak <= 8192
        True
    """
    device, memory = torch.device(device), PeakMemory()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield memory
        torch.cuda.synchronize(device)
        memory.peak = torch.cuda.max_memory_allocated(device) - before
    elif device.type == "cpu":
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            yield memory
        memory.peak = peak_allocation(profile)
    else:
        raise ValueError(
            f"device: expected 'cpu' or a CUDA device, got {str(device)!r}. Pass one of these."
        )
    if limit is not None and memory.peak > limit:
        raise AssertionError(
            f"expected at most {limit:,} bytes allocated at one time on {device}, got "
            f"{memory.peak:,}. Compile the step with donate=True, split the batch with accumulate=, or "
            "raise the limit."
        )


@contextlib.contextmanager
def deterministic(*, threads: int | None = None, seed: int | None = None) -> Iterator[None]:
    """Run a `with` block with torch's deterministic algorithms; restore all settings at its end.

    `torch.use_deterministic_algorithms(True)`, cuDNN's deterministic kernels without benchmarks, and on
    request a number of threads and seeds of the global generators.

    Args:
        threads: the number of threads inside an operator; `None` leaves it unchanged.
        seed: the seed of torch's, NumPy's and Python's generators, whose states are restored afterwards;
            `None` leaves them unchanged.

    Raises:
        RuntimeError: CUDA is initialized, and `CUBLAS_WORKSPACE_CONFIG` was not set before.

    Example:
        >>> with deterministic(threads=1):
        ...     torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
        (True, 1)
        >>> torch.are_deterministic_algorithms_enabled()
        False
    """
    _prepare_cublas()
    with contextlib.ExitStack() as stack:
        if seed is not None:
            stack.enter_context(seeded(seed))
        stack.callback(_restore, _settings())
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        if threads is not None:
            torch.set_num_threads(threads)
        yield


def _prepare_cublas() -> None:
    """Set `CUBLAS_WORKSPACE_CONFIG` for deterministic cuBLAS, which reads it at initialization."""
    if torch.version.cuda is None or "CUBLAS_WORKSPACE_CONFIG" in os.environ:
        return
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        raise RuntimeError(
            "deterministic: expected CUBLAS_WORKSPACE_CONFIG in the environment before CUDA is "
            "initialized, got none. Run with CUBLAS_WORKSPACE_CONFIG=:4096:8."
        )
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


def _settings() -> tuple[Any, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
    )


def _restore(settings: tuple[Any, ...]) -> None:
    enabled, warn_only, cudnn, benchmark, threads = settings
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn, benchmark
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
