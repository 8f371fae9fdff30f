"""Compiled graph, with guards that check its arguments and captured tensors."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ftrain.core import _torch, tree
from ftrain.core._loss_notes import dtype_note
from ftrain.core.compile._call import AUTOCAST, Call
from ftrain.core.compile._cpp_wrapper import why_no_cpp_wrapper
from ftrain.core.compile._cuda_graph import ReplayedProgram, replays, why_not_captured
from ftrain.core.compile._errors import describe, describe_key
from ftrain.core.compile._graph import custom_operators
from ftrain.core.compile._leaks import refuse_differentiated, without_parameters
from ftrain.core.compile._lower import (
    Backend,
    Code,
    Lowered,
    Shortened,
    cloned,
    lower,
    run_code,
    separate,
    shared_outputs,
)
from ftrain.core.compile._reader import compile_reader
from ftrain.core.compile._trace import TENSOR, Traced
from ftrain.core.random._keyed_operators import OpaqueOperators, has_opaque

__all__ = ["Program"]

_SHOWN = 4  # number of arguments named in the note on a failed first run


class Program:
    """Compiled graph, with guards that decide whether arguments fit it."""

    def __init__(self, call: Call, traced: Traced) -> None:
        tensors = call.tensors()
        self.signature = call.signature
        self.settings = call.settings
        self._name = getattr(call.fn, "__name__", None) or type(call.fn).__name__
        self.tensor_names = [
            name
            for name, leaf in zip(call.names, call.leaves, strict=True)
            if isinstance(leaf, torch.Tensor)
        ] + [f"a captured {describe(tensor)}" for tensor in traced.captured]
        self.read = compile_reader(call.args, call.kwargs)
        self._guard = _guard(tensors)
        self.captured = CapturedAtTrace(traced.captured, self._name)
        self.n_donated = traced.n_donated
        self.whole = traced.whole
        if self.n_donated:
            leaves, self._state_def = tree.flatten(call.args[0])
            self._state = [TENSOR if isinstance(x, torch.Tensor) else x for x in leaves]
        self.out_treedef = traced.out_treedef
        self._unflatten = traced.out_treedef.unflatten
        self.is_loaded = self.has_run = self.has_cpp_wrapper = False
        self.why_python: str | None = None  # reason for which a C++ wrapper was not made
        self.static = [(i, leaf) for i, leaf in enumerate(traced.out_leaves) if leaf is not TENSOR]

    def lower(
        self,
        graph: fx.GraphModule,
        tensors: Sequence[torch.Tensor],
        backend: Backend,
        mode: str | None,
        cpp_wrapper: bool,
    ) -> None:
        inputs = [*tensors, *self.captured.inputs()]
        self._has_opaque = has_opaque(graph)
        self.operators = custom_operators(graph)
        self._mode = mode
        self._device: torch.device | None = None  # the handle of the program's CUDA graph
        if backend == "inductor" and replays(mode, inputs):
            reason = why_not_captured(graph, inputs, self.tensor_names)
            if reason is None:
                self._device = inputs[0].device
            else:
                self._warn_of_launches(reason)
        if cpp_wrapper and (reason := why_no_cpp_wrapper(graph, inputs)):
            self._warn_of_python_wrapper(reason)
            self.why_python = reason
            cpp_wrapper = False
        self.has_cpp_wrapper = cpp_wrapper
        self._machine_code = lower(
            graph, inputs, backend, mode, n_donated=self.n_donated, cpp_wrapper=cpp_wrapper
        )
        self._lowered = self._without_autocast(self._machine_code)
        self._call: Lowered = self._first

    def load(self, code: Code, shared: Sequence[int]) -> None:
        """Use machine code that was saved, with the places of the outputs that are to be cloned."""
        self.is_loaded = True
        run = functools.partial(run_code, code, n_donated=self.n_donated)
        self._call = separate(self._without_autocast(run), shared)

    @property
    def code(self) -> Code | None:
        """Machine code without inductor's wrappers; `None` before the first call, for example."""
        run = None if self.is_loaded else self._machine_code
        return run.code if isinstance(run, Shortened) else None

    def _without_autocast(self, run: Lowered) -> Lowered:
        return _under(_torch.without_autocast, run) if self.settings[AUTOCAST] else run

    def fits(self, tensors: Sequence[Any], n_known: int) -> bool:
        """Return True if these tensors, and the captured tensors as they are now, pass the guards.

        Args:
            n_known: the number of leading tensors that are certainly not nested.
        """
        return (
            not _any_nested(tensors[n_known:] if n_known else tensors)
            and self._guard(*tensors)
            and self.captured.fit()
        )

    def __call__(self, tensors: list[torch.Tensor]) -> Any:
        captured = self.captured.inputs()
        outputs = self._call([*tensors, *captured] if captured else tensors)
        n = self.n_donated
        leaves = [*tensors[:n], *outputs] if n else list(outputs)
        for place, value in self.static:  # in ascending order of position
            leaves.insert(place, value)
        return self._unflatten(leaves)

    def state(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return the donated state, rebuilt from its tensors."""
        values = iter(tensors)
        return self._state_def.unflatten(
            [next(values) if leaf is TENSOR else leaf for leaf in self._state]
        )

    def _warn_of_launches(self, reason: str) -> None:
        warnings.warn(
            f"`{self._name}` is compiled with mode={self._mode!r} and runs without a CUDA graph: "
            f"{reason}. Its results are the same, and its kernels are launched one by one. Leave out "
            "the mode to accept that.",
            stacklevel=2,
        )

    def _warn_of_python_wrapper(self, reason: str) -> None:
        warnings.warn(
            f"`{self._name}` is compiled with cpp_wrapper=True and calls its kernels from Python: "
            f"{reason}. Its results are the same, and each call takes some microseconds longer. Leave "
            "out cpp_wrapper to accept that.",
            stacklevel=2,
        )

    def _first(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        try:
            with OpaqueOperators() if self._has_opaque else contextlib.nullcontext():
                outputs = self._lowered(inputs)
        except RuntimeError as error:
            # Fake tensors accept some errors, such as a product of two dtypes. The last arguments are
            # shown, because the batch comes last.
            last = list(zip(self.tensor_names, map(describe, inputs), strict=True))[-_SHOWN:]
            error.add_note(
                "(while the traced graph ran for the first time, on "
                f"{', '.join(f'{name}: {kind}' for name, kind in last)}; "
                "the same call without ftrain.compile shows the line)"
            )
            pairs = zip(self.tensor_names, inputs, strict=True)
            of_batch = {name: x for name, x in pairs if name.startswith("batch")}
            if note := dtype_note(error, of_batch):
                error.add_note(f"({note})")
            raise
        self.has_run = True
        self.shared = shared_outputs(inputs, outputs)
        outputs = cloned(outputs, self.shared)
        self._call = separate(self._lowered, self.shared)
        if self._device is not None:
            self._call = ReplayedProgram(
                self._call, self.n_donated, self._device, self._warn_of_launches
            )
        return outputs


class CapturedAtTrace:
    """Tensors that a function captures, with their shapes, dtypes, devices and strides at the trace.

    The tensor objects are stored, since `w.data = other`, `w.resize_()` and `module.double()` change
    their memory, dtype or shape. A change of memory has an effect at the next call; a change of dtype or
    shape requires another program.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], function: str) -> None:
        self.tensors = list(tensors)
        self._function = function  # the name of the function in messages
        self._specs = [_spec(tensor) for tensor in tensors]
        self._addresses: list[int] | None = None
        self._detached: list[torch.Tensor] = []
        self._has_bits = False
        with torch.no_grad():  # torch's guard should not depend on the caller's grad mode
            self._guard = _guard(self.tensors)
        self._others = without_parameters(self.tensors)

    def fit(self) -> bool:
        """Return True if the tensors still have the shapes, dtypes, devices and strides of the trace.

        Raises:
            RuntimeError: the caller differentiates by one of them.
        """
        if not self.tensors:
            return True
        differentiates = torch.is_grad_enabled() and any(x.requires_grad for x in self._others)
        if differentiates or _torch.is_forward_mode():
            refuse_differentiated(self.tensors, self._function)
        with torch.no_grad():
            if _any_nested(self.tensors):
                return False
            if self._guard(*self.tensors):
                return True
            if self.changes():
                return False
            # `requires_grad`, as by freezing, or a conjugate or negative bit: needs no other program.
            self._guard, self._addresses = _guard(self.tensors), None
            return True

    def inputs(self) -> list[torch.Tensor]:
        """Return the captured tensors, detached, as inputs of the program; requires `fit()`."""
        if self.tensors:
            found = list(map(torch.Tensor.data_ptr, self.tensors))
            if found != self._addresses:
                self._detached = [tensor.detach() for tensor in self.tensors]
                self._addresses = found
                self._has_bits = any(x.is_conj() or x.is_neg() for x in self.tensors)
            if self._has_bits:  # machine code reads the memory, without the bits
                return list(map(_without_bits, self._detached))
        return self._detached

    def changes(self) -> list[str]:
        """Return a line for each tensor whose shape, dtype, device or strides have changed."""
        return [
            f"a captured tensor: {describe_key(old)} -> {describe(tensor)}"
            for old, tensor in zip(self._specs, self.tensors, strict=True)
            if _any_nested([tensor]) or old != _spec(tensor)
        ]


def _without_bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the same values and strides, without conjugate or negative bit.

    The program reads the strides of the trace. `resolve_conj` and `resolve_neg` return contiguous
    copies of tensors that are not dense, so that they are called on all memory that the tensor spans.
    """
    if not (tensor.is_conj() or tensor.is_neg()) or not tensor.numel():
        return tensor.resolve_conj().resolve_neg()
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    span = 1 + sum((n - 1) * stride for n, stride in pairs)
    memory = tensor.as_strided((span,), (1,)).resolve_conj().resolve_neg()
    return memory.as_strided(tensor.shape, tensor.stride(), 0)


def _under(context: Callable[[], Any], run: Lowered) -> Lowered:
    def inside(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with context():
            return run(inputs)

    return inside


def _spec(tensor: torch.Tensor) -> tuple[Any, ...]:
    return (tensor.shape, tensor.dtype, tensor.device, tensor.stride())


def _any_nested(tensors: Sequence[Any]) -> bool:
    """Return True if an item is not a tensor, or is a nested tensor, which would crash torch's guard.

    Takes 0.06 µs per tensor.
    """
    try:
        for tensor in tensors:
            if tensor.is_nested:
                return True
    except AttributeError:  # an argument is not a tensor
        return True
    return False


def _guard(examples: Sequence[torch.Tensor]) -> Callable[..., bool]:
    return _torch.tensor_guard(examples) or slow_guard(examples)


def slow_guard(examples: Sequence[torch.Tensor]) -> Callable[..., bool]:
    """Return a Python function that checks tensors as the C++ guard of `_torch.tensor_guard` does."""

    def spec(tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            return None
        requires_grad = tensor.requires_grad and torch.is_grad_enabled()
        return (type(tensor), *_spec(tensor), requires_grad, tensor.is_conj(), tensor.is_neg())

    expected = [spec(example) for example in examples]
    return lambda *tensors: [spec(tensor) for tensor in tensors] == expected
