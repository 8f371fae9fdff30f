"""`compile`: jit semantics for pure functions of trees, on stock PyTorch.

Read next: `_compiled.py` (calls), `_trace.py` (from Python to a graph), `_lower.py` (from the graph to
machine code), `_donate.py` (reuse of the old state's memory).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from ftrain.core._words import a_or_an
from ftrain.core.compile._compiled import Compiled
from ftrain.core.compile._load import load_executable
from ftrain.core.compile._lower import Backend
from ftrain.core.compile._lowered import Executable
from ftrain.core.compile._toolchain import check_compiler
from ftrain.core.compile._trace import is_tracing

__all__ = [
    "Compiled",
    "Executable",
    "check_compiler",
    "compile",
    "is_tracing",
    "load_executable",
]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def compile(
    fn: Callable[P, R],
    *,
    donate: bool = ...,
    mode: str | None = ...,
    backend: Backend = ...,
    cpp_wrapper: bool = ...,
) -> Compiled[P, R]: ...
@overload
def compile(
    *,
    donate: bool = ...,
    mode: str | None = ...,
    backend: Backend = ...,
    cpp_wrapper: bool = ...,
) -> Callable[[Callable[P, R]], Compiled[P, R]]: ...
def compile(
    fn: Callable[..., Any] | None = None,
    *,
    donate: bool = False,
    mode: str | None = None,
    backend: Backend = "inductor",
    cpp_wrapper: bool = False,
) -> Any:
    """Compile a pure function of trees of tensors, with the semantics of `jax.jit`.

    At the first call `fn` runs once on tensors without values, and every operator that it runs,
    autograd's included, becomes part of one graph: there are no graph breaks. The compiled program is
    used for all later calls whose arguments have the same structure, shapes, dtypes, devices and
    strides. For other arguments another program is compiled, with a `RecompileWarning` that names the
    changes.

    Arguments that are not tensors (Python numbers, strings, functions) are constants of the program and
    part of its key: pass `torch.tensor(x)` for a number that changes. Outputs that are not tensors are
    constants with their values at the trace. Captured tensors are read at each call: changes of their
    values and memory (`w.data = ...`) have an effect, and a new shape or dtype (`module.double()`)
    compiles another program. A name or attribute that is bound to another tensor object, as by
    `load_state_dict(assign=True)`, has no effect: pass such tensors as arguments. The caller's grad mode
    has no influence (`fn` runs with grad enabled on detached inputs, and no output requires a gradient);
    its autocast and default dtype have, and are part of the key. For the caller's gradients, an
    `nn.Parameter` that `fn` captures is a constant; any other tensor that requires a gradient, as an
    argument or captured, raises while grad mode is on. Inputs are never written to, and no output shares
    memory with an input or another output. Inside an ftrain loss or model that is not compiled, `fn`
    itself is called, so that it is differentiated with its caller and draws from the caller's key.

    On the CPU, sums over repeated indices, such as the gradients of embeddings and of indexed tensors,
    are computed in the order of the indices, with any number of threads. On CUDA, their order varies
    unless `torch.use_deterministic_algorithms(True)` was called.

    Args:
        fn: a pure function. It may use `torch.func`, `torch.autograd.grad`, autocast, custom operators
            and other compiled functions. To map over it, write `compile(torch.vmap(fn))`.
        donate: donate `fn`'s first argument, a `TrainState` or other frozen dataclass, or a dict, list
            or tuple of them (as `transforms.alternate` has): the new state, which `fn` returns first or
            alone, is written into its memory inside the program, and any further use of the old one
            raises `DonatedStateError`. Its tensors become the leaves of the
            new state. A tensor to which another object refers is copied first, so that this object keeps
            its values: a leaf or a view in a variable, a NumPy array, `state.replace(...)`, a dict of
            parameters. (Each such leaf needs its memory twice, for as long as the object exists. A bare
            `UntypedStorage` is not detected.) A call claims the state before its program runs; a second
            thread that passes or reads the state after the claim gets `DonatedStateError`. An error
            while tracing or compiling leaves the state unchanged, and so does one in the program before
            its first write (out of memory for an activation, a non-finite gradient under
            `nonfinite="raise"`); after that the state is lost.
        mode: `torch.compile`'s modes: "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs".
            On a CUDA device the first two replay each program as one CUDA graph, from about its third
            call on. Such a graph keeps the memory of its intermediates, and reads its inputs at fixed
            addresses. A donated state is updated in place if each call gets the state that the previous
            one returned (with another state, such as a loaded one, a few calls run without a graph
            before it is captured again). Batches and states that are not donated are copied into the
            graph's memory; outputs are copied out of it. A program that cannot be captured, because it
            waits for the device (`nonfinite="raise"`, SOAP, Sophia, L-BFGS) or acts on the host
            (`debug.print`), runs without a graph, with one warning that names the reason. Tag a custom
            operator that acts on the host with `torch.Tag.cudagraph_unsafe`.
        backend: "eager" runs the traced graph operator by operator and needs no compiler.
        cpp_wrapper: call the kernels from C++ instead of Python (inductor's option of this name). The
            bits are the same. A call of a small step takes 6 to 8 µs less, a `scan` of small steps 14 µs
            a step less (MLP of three 16-wide layers, Intel Xeon). Compilation takes longer, exceptions
            of Python operators become `RuntimeError`, and a donated state is lost if its program raises.
            A program that is not on the CPU, or has an operator that acts on the host
            (`nonfinite="raise"`, `debug.print`), communicates, or takes a text with quotes (`nn.LSTM`),
            calls its kernels from Python, with one warning that names the reason.

    Returns:
        The compiled function; `n_compiles` counts its programs, `graph(*args)` shows the traced graph,
        `cost(*args)` returns a `Cost`, the time of each operator and kernel of a call, and
        `lower(*args).compile()` compiles ahead of the first call. Its result can be saved
        (`Executable.save`, `load_executable`).

    Raises:
        TraceError: `fn` needs the value of a tensor; the message shows where.
        ImpureFunctionError: `fn` writes into an argument or a captured tensor.
        DonationError: the new state does not fit the old one's memory.
        CompilerMissingError: the C++ compiler is missing.
        RuntimeError: the caller differentiates by an argument or a captured tensor.

    >>> import torch
    >>> @compile(backend="eager")
    ... def norm(tree):
    ...     return sum((leaf * leaf).sum() for leaf in tree.values()).sqrt()
    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    tensor(5.)
    >>> norm.n_compiles
    1
    """
    if backend not in ("inductor", "eager"):
        raise ValueError(
            f"backend: expected 'inductor' or 'eager', got {backend!r}. Write backend='inductor'."
        )
    if cpp_wrapper and (backend == "eager" or mode is not None):
        raise ValueError(
            f"cpp_wrapper: expected backend='inductor' and mode=None, got backend={backend!r} and "
            f"mode={mode!r}. Leave out cpp_wrapper."
        )
    if fn is None:
        return lambda function: Compiled(function, donate, mode, backend, cpp_wrapper)
    if not callable(fn):
        raise TypeError(
            f"compile: expected a function, got {a_or_an(type(fn).__name__)}. Pass the function itself."
        )
    return Compiled(fn, donate, mode, backend, cpp_wrapper)
