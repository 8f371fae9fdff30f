"""Replay of a compiled program as a CUDA graph, for the modes "reduce-overhead" and "max-autotune".

A program's first call compiles its kernels. The second call runs on the stream that is captured later,
and shows whether the program waits for the device. When the program is called again with the same
memory, it is captured, so that one launch replaces the launches of its kernels.

A graph reads and writes fixed addresses. Donated leaves stay in place, because the returned state has
the memory of the old state. For a state in other memory, the first steps run without a graph, and then
another graph is captured. Inputs whose memory changes, such as batches, are copied into memory of the
graph. Outputs are copied out of the graph's memory, so that the next call does not overwrite them.

A program that cannot be captured runs without a graph, with one `UserWarning` that gives the reason.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from ftrain.core._torch_dispatch import names_of
from ftrain.core._torch_operators import operators_of
from ftrain.core._torch_tensors import copy_all
from ftrain.core.compile._errors import first_line
from ftrain.core.compile._failed_donation import before_writes
from ftrain.core.compile._lower import Lowered

__all__ = ["ReplayedProgram", "replays", "why_not_captured"]

_MODES = ("reduce-overhead", "max-autotune")
_GRAPHS = 2  # graphs kept for each program; each has memory for the program's intermediates
_KEYS = 8  # number of states without a graph whose calls are counted


def replays(mode: str | None, inputs: Sequence[torch.Tensor]) -> bool:
    """Return True if the compile mode uses CUDA graphs and the inputs are on a CUDA device."""
    return mode in _MODES and any(x.is_cuda for x in inputs)


def why_not_captured(
    graph: fx.GraphModule, inputs: Sequence[torch.Tensor], names: Sequence[str]
) -> str | None:
    """Return the reason for which a traced graph cannot be replayed; `None` if none is known."""
    devices = {x.device for x in inputs}
    if len(devices) > 1:
        first = inputs[0].device
        other = next(i for i, x in enumerate(inputs) if x.device != first)
        return (
            f"its inputs are on several devices: `{names[0]}` on {first}, `{names[other]}` on "
            f"{inputs[other].device}"
        )
    return acts_outside(graph)


def acts_outside(graph: fx.GraphModule) -> str | None:
    """Describe the first operator that acts on the host or on other processes; `None` without one."""
    for operator in operators_of(graph):
        if torch.Tag.cudagraph_unsafe in operator.tags:
            return f"its operator `{names_of(operator)[0]}` acts on the host"
        if operator.namespace in ("_c10d_functional", "c10d"):
            return f"its operator `{names_of(operator)[0]}` communicates with other processes"
    return None


class ReplayedProgram:
    """Program on one CUDA device, captured as a CUDA graph once the addresses of its inputs are known.

    Args:
        run: the compiled program, after its first call.
        n_donated: the number of leading inputs that it writes to.
        device: the device of all inputs.
        give_up: called once, with the reason, if the program cannot be captured.
    """

    def __init__(
        self, run: Lowered, n_donated: int, device: torch.device, give_up: Callable[[str], None]
    ) -> None:
        self._run = run
        self._n = n_donated
        self._device = device
        self._give_up = give_up
        self._lock = threading.RLock()
        self._is_warm = False
        self._addresses: list[int] = []  # addresses of the last call's inputs
        self._moving: set[int] = set()  # positions of inputs whose memory changes between calls
        self._graphs: dict[tuple[int, ...], CapturedProgram] = {}
        self._uncaptured: dict[tuple[int, ...], int] = {}  # number of calls without a graph
        self._n_captures = 0
        self._stream: torch.cuda.Stream | None = None  # stream of the last call

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if torch.cuda.is_current_stream_capturing():
            return self._run(inputs)  # becomes part of the caller's graph
        with self._lock:
            return self._call(inputs)

    def _call(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if self._give_up is _gave_up:
            return self._run(inputs)
        stream = torch.cuda.current_stream(self._device)
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)  # that stream may still use the graph's memory
        self._stream = stream
        before, self._addresses = self._addresses, list(map(torch.Tensor.data_ptr, inputs))
        key = tuple(self._addresses[: self._n])
        if not self._is_warm:
            return self._warm_up(key, inputs, stream)
        graph = self._graphs.get(key)
        if graph is not None and graph.reads(self._addresses):
            return graph(inputs)
        moved = (i for i in range(self._n, len(inputs)) if self._addresses[i] != before[i])
        self._moving.update(moved)
        self._graphs.pop(key, None)
        del graph
        # A capture takes as long as many steps, so each further capture requires more repeated calls.
        n_calls = self._uncaptured.pop(key, 0)
        if n_calls <= self._n_captures:
            self._count(key, n_calls + 1)
            return self._run(inputs)
        while len(self._graphs) >= _GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        new = self._try_to_capture(inputs)
        if new is None:
            return self._run(inputs)
        self._graphs[key] = new
        return new(inputs)

    def _try_to_capture(self, inputs: Sequence[torch.Tensor]) -> CapturedProgram | None:
        try:
            captured = capture(self._run, inputs, self._n, self._moving, self._device)
        except Exception as error:  # nothing has run yet, so the program can run without a graph
            self._stop(f"its capture failed ({type(error).__name__}: {first_line(error)})")
            return None
        self._n_captures += 1
        return captured

    def _count(self, key: tuple[int, ...], n_calls: int) -> None:
        while len(self._uncaptured) >= _KEYS:
            del self._uncaptured[next(iter(self._uncaptured))]
        self._uncaptured[key] = n_calls

    def _warm_up(
        self, key: tuple[int, ...], inputs: Sequence[torch.Tensor], stream: torch.cuda.Stream
    ) -> Sequence[torch.Tensor]:
        """Run once on the capture stream, so that libraries allocate their memory before the capture."""
        side = _side_stream(self._device)
        side.wait_stream(stream)
        try:
            with torch.cuda.stream(side), _waits() as waits:
                outputs = self._run(inputs)
        finally:
            stream.wait_stream(side)
        for output in outputs:
            if output.is_cuda:
                output.record_stream(stream)
        self._is_warm = True
        self._count(key, 1)
        if waits:
            self._stop(
                "it waits for the device (cond, while_loop, .item() or a custom operator reads a value "
                "on the host)"
            )
        elif any(output.device != self._device for output in outputs):
            self._stop(f"it returns a tensor that is not on {self._device}")
        return outputs

    def _stop(self, reason: str) -> None:
        give_up, self._give_up = self._give_up, _gave_up
        self._graphs.clear()
        give_up(reason)


def _gave_up(reason: str) -> None:
    """Do nothing; replaces `give_up` after its first call, so that only one reason is reported."""


class CapturedProgram:
    """CUDA graph of a program, which copies inputs and outputs to and from the graph's fixed memory.

    Args:
        graph: the captured kernels.
        n_donated: the number of leading inputs that the kernels write to, in place.
        fixed: position and address of the other inputs that are read in place.
        buffers: position of each further input, and the memory that it is copied to.
        outputs: the outputs, in the graph's memory.
    """

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        n_donated: int,
        fixed: dict[int, int],
        buffers: dict[int, torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> None:
        self._graph = graph
        self._n = n_donated
        self._fixed = list(fixed.items())
        self._buffers = buffers
        self._incoming = _by_dtype(buffers)
        self._outputs = list(outputs)
        self._outgoing = _by_dtype(dict(enumerate(self._outputs)))

    def reads(self, addresses: Sequence[int]) -> bool:
        """Return True if the graph can read inputs at these addresses in place."""
        return all(addresses[place] == address for place, address in self._fixed)

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        outputs = self._prepare(inputs)
        torch.autograd.graph.increment_version(inputs[: self._n])
        self._graph.replay()
        for places in self._outgoing:
            copy_all([outputs[i] for i in places], [self._outputs[i] for i in places])
        return outputs

    @before_writes
    def _prepare(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Allocate the outputs and copy the inputs; the allocation may run out of memory."""
        outputs = [_like(output) for output in self._outputs]
        for places in self._incoming:
            copy_all([self._buffers[i] for i in places], [_dense(inputs[i]) for i in places])
        return outputs


@before_writes
def capture(
    run: Lowered,
    inputs: Sequence[torch.Tensor],
    n_donated: int,
    moving: set[int],
    device: torch.device,
) -> CapturedProgram:
    """Capture a program; its kernels do not run before the first replay.

    Args:
        moving: positions of the inputs that are copied into the graph's memory.
    """
    graph = torch.cuda.CUDAGraph()
    side, current = _side_stream(device), torch.cuda.current_stream(device)
    with torch.no_grad(), torch.inference_mode(False), torch.cuda.device(device):
        buffers = {i: _like(_dense(inputs[i])) for i in moving}
        for i, buffer in buffers.items():
            buffer.copy_(_dense(inputs[i]))  # raises if elements overlap
        given = [buffers[i].expand(x.shape) if i in moving else x for i, x in enumerate(inputs)]
        # The current stream is set again, because a failed capture does not restore it (torch 2.14).
        with torch.cuda.stream(current), _no_collection():
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                outputs = run(given)
    fixed = {i: inputs[i].data_ptr() for i in range(n_donated, len(inputs)) if i not in moving}
    return CapturedProgram(graph, n_donated, fixed, buffers, outputs)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _like(tensor: torch.Tensor) -> torch.Tensor:
    options: Any = {"dtype": tensor.dtype, "device": tensor.device}
    return torch.empty_strided(tensor.shape, tensor.stride(), **options)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view without the elements that `expand` repeats, so that it can be copied to."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _by_dtype(tensors: dict[int, torch.Tensor]) -> list[list[int]]:
    """Return the positions of non-empty tensors, grouped by dtype."""
    groups: dict[torch.dtype, list[int]] = {}
    for place, tensor in tensors.items():
        if tensor.numel():
            groups.setdefault(tensor.dtype, []).append(place)
    return list(groups.values())


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector, since a capture forbids that CUDA events and graphs are freed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def _waits() -> Iterator[list[str]]:
    """In the context, collect the operators that make this thread wait for the device."""
    thread, found = threading.get_ident(), []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show = warnings.showwarning

        def note(message: Any, *args: Any, **kwargs: Any) -> None:
            if "called a synchronizing" in str(message):
                if threading.get_ident() == thread:
                    found.append(str(message))
            elif "prototype feature" not in str(message):
                show(message, *args, **kwargs)

        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
