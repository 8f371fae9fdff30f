"""`compile`: jit semantics for pure functions of trees, on stock PyTorch.

Read next: `_compiled.py` (a call), `_trace.py` (from Python to a graph), `_lower.py` (from the graph to
machine code), `_donate.py` (the new state in the old one's memory).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from ftrain.core.compile._compiled import Compiled
from ftrain.core.compile._lower import Backend
from ftrain.core.compile._toolchain import check_compiler
from ftrain.core.compile._trace import is_tracing

__all__ = [
    "Compiled",
    "check_compiler",
    "compile",
    "is_tracing",
]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def compile(
    fn: Callable[P, R], *, donate: bool = ..., mode: str | None = ..., backend: Backend = ...
) -> Compiled[P, R]: ...
@overload
def compile(
    *, donate: bool = ..., mode: str | None = ..., backend: Backend = ...
) -> Callable[[Callable[P, R]], Compiled[P, R]]: ...
def compile(
    fn: Callable[..., Any] | None = None,
    *,
    donate: bool = False,
    mode: str | None = None,
    backend: Backend = "inductor",
) -> Any:
    """Compile a pure function of trees of tensors, with the semantics of `jax.jit`.

    At the first call `fn` runs once on tensors without values, and every operator that it runs,
    autograd's included, becomes part of one graph: there are no graph breaks. The compiled program
    serves all later calls whose arguments have the same structure, shapes, dtypes, devices and strides;
    others get a program of their own, with a `RecompileWarning` that names what changed.

    Arguments that are not tensors (Python numbers, strings, functions) are constants of the program and
    part of its key: pass `torch.tensor(x)` for a number that changes. Outputs that are not tensors keep
    their values at the trace. Tensors that `fn` captures from outside are read afresh at
    each call: new values and new memory (`w.data = ...`) are followed, and a new shape or dtype
    (`module.double()`) makes a new program. A name or attribute that is bound to another tensor object
    is not seen, as with `load_state_dict(assign=True)`: pass such tensors in. The caller's grad mode
    has no influence (`fn` runs with grad enabled on detached inputs, and no output requires a gradient,
    whatever `fn` captures); its autocast and default dtype do, and are part of the key. Inputs are never
    written to, and no output shares memory with an input or another output. Inside an ftrain loss or
    model that is not compiled, `fn` itself is called, and is differentiated and keyed with its caller.

    Args:
        fn: a pure function. Inside, `torch.func`, `torch.autograd.grad`, autocast, custom operators and
            other compiled functions work; to map over it, `compile(torch.vmap(fn))`.
        donate: donate `fn`'s first argument, a `TrainState` or other frozen dataclass: the new state,
            which `fn` returns first or alone, is written into its memory inside the program, and
            any further use of the old one raises `DonatedStateError`. Its tensors become the leaves of
            the new state. A tensor that something else refers to is copied first, so that what was taken
            out of the state keeps its values: a leaf or a view in a variable, a NumPy array,
            `state.replace(...)`, a dict of parameters. (Each such leaf costs its memory once more, for
            as long as it is kept. A bare `UntypedStorage` is not detected.) A call claims the state
            before its program runs; a second thread that passes or reads the state after the claim gets
            `DonatedStateError`. An error while tracing or compiling leaves the state unchanged, and so
            does one in the program before its first write (out of memory for an activation, a non-finite
            gradient under `nonfinite="raise"`); after that the state is lost.
        mode: `torch.compile`'s modes: "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs".
            On a CUDA device the first two replay each program as one CUDA graph, from about its third
            call on. Such a graph keeps the memory of its intermediates, and reads its inputs at fixed
            addresses: a donated state is updated in place as long as each call is given the state that
            the last one returned (after another state, such as a loaded one, a few calls run without a
            graph before it is captured again); batches and undonated states are copied into the
            graph's memory; outputs are copied out of it. A program that cannot be captured, because it
            waits for the device (`nonfinite="raise"`, SOAP, Sophia, L-BFGS) or acts on the host
            (`debug.print`), runs without a graph, with one warning that says why. Tag a custom operator
            that acts on the host with `torch.Tag.cudagraph_unsafe`.
        backend: "eager" runs the traced graph operator by operator and needs no compiler.

    Returns:
        The compiled function; `n_compiles` counts its programs, `graph(*args)` shows the traced graph,
        `cost(*args)` returns a `Cost`, the time of each operator and kernel of a call, and
        `lower(*args).compile()` compiles ahead of the first call.

    Raises:
        TraceError: `fn` needs the value of a tensor; the message shows where.
        ImpureFunctionError: `fn` writes into an argument or a captured tensor.
        DonationError: the new state does not fit the old one's memory.
        CompilerMissingError: the C++ compiler is missing.

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
        raise ValueError(f"backend: expected 'inductor' or 'eager', got {backend!r}")
    if fn is None:
        return lambda function: Compiled(function, donate, mode, backend)
    if not callable(fn):
        raise TypeError(f"compile: expected a function, got {type(fn).__name__}")
    return Compiled(fn, donate, mode, backend)
