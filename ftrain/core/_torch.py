"""Private torch APIs used by compile and scan.

Each docstring names the torch versions that have the API and what happens without it. All uses of
private APIs are in files `_torch*.py` (exceptions: `tests/test_private_apis.py`), so that a new version
of torch changes few files. Written for torch 2.11 and later, and run on 2.11, 2.13 and 2.15.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
    make_fx,
)

from ftrain.core._torch_dispatch import DispatchMode
from ftrain.core._torch_fake import REWRITTEN, fake_mode

__all__ = [
    "DATA_DEPENDENT",
    "FakeTensor",
    "FakeTensorMode",
    "any_autocast",
    "as_compiled",
    "aside",
    "autocast_now",
    "autocast_state",
    "fake_mode",
    "function_mode_depth",
    "function_modes",
    "inside_functorch",
    "inside_vmap",
    "interning",
    "is_dual",
    "is_faking",
    "is_forward_mode",
    "is_forward_mode_nested",
    "is_recorded",
    "is_unintercepted",
    "is_wrapped",
    "node_of",
    "nodes_ever",
    "norms",
    "of_same_bits",
    "record_as",
    "sequence_number",
    "silent",
    "storage_use_count",
    "tensor_guard",
    "trace",
    "trace_inner",
    "unwatched",
    "unwrapped",
    "value_at_hand",
    "with_autograd",
    "without_autocast",
    "without_modes_below",
]

_guards = getattr(getattr(torch._C._dynamo, "guards", None), "TensorGuards", None)

# Number of tensors, views and arrays that share a storage, by its address: 0.05 µs (2.5 and later;
# before, only in builds for CUDA). Without it, views of a donated state's tensors are not detected.
storage_use_count: Callable[[int], int] = getattr(torch._C, "_storage_Use_Count", lambda address: 1)

# Raised by a trace if Python reads a tensor's value, or a shape depends on a value (2.0 and later).
DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException)


def is_faking() -> bool:
    """Return True while operators compute shapes only (`detect_fake_mode`, torch 2.0 and later)."""
    return detect_fake_mode() is not None


def trace(fn: Callable[..., Any], fakes: Sequence[torch.Tensor]) -> fx.GraphModule:
    """Return the graph of operators that `fn` runs on fake tensors (`make_fx`, torch 2.0 and later)."""
    # Errors in the user's code are raised, so that torch need not log them.
    with silent("torch._subclasses.fake_tensor"):
        return make_fx(fn, REWRITTEN, tracing_mode="fake", _allow_non_fake_inputs=True)(*fakes)


def is_recorded(tensor: torch.Tensor) -> bool:
    """Return True for a result of the current trace; False for its inputs and captured tensors."""
    mode = get_proxy_mode()
    proxy = None if mode is None else mode.tracer.tensor_tracker.get(tensor)
    return proxy is not None and proxy.proxy.node.op != "placeholder"


def node_of(tensor: torch.Tensor) -> fx.Node | None:
    """Return the node that computed a tensor in the current trace, or `None` (torch 2.0 and later)."""
    mode = get_proxy_mode()
    proxy = None if mode is None else mode.tracer.tensor_tracker.get(tensor)
    node: fx.Node | None = None if proxy is None else proxy.proxy.node
    if node is not None and node.target is operator.getitem:
        return node.args[0]  # type: ignore[return-value]  # the first argument of a getitem is a node
    return node


def record_as(tensor: torch.Tensor, other: torch.Tensor) -> None:
    """Record later uses of `tensor` in the trace as uses of `other` (torch 2.3 and later)."""
    mode = get_proxy_mode()
    assert mode is not None
    mode.tracer.tensor_tracker[tensor] = mode.tracer.tensor_tracker[other]


def without_modes_below(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `fn` so that function modes do not see calls that torch's own kernels and tracer make.

    A function mode around a backward pass also sees the Python code of fake kernels and of the tracer
    (torch 2.13: `torch.empty_strided` in `extract_val`), which it must not treat as the user's calls.
    """

    @functools.wraps(fn)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _Below():
            return fn(*args, **kwargs)

    return wrapped


class _Below(DispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if not isinstance(func, torch._ops.OpOverload):  # it calls functions of the user
            return func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            return func(*args, **(kwargs or {}))


def tensor_guard(tensors: Sequence[torch.Tensor]) -> Callable[..., bool] | None:
    """Return a C++ check of the types, dtypes, devices, shapes and strides of tensors.

    The check is Dynamo's own guard (2.0 and later): 20 µs for 300 tensors, where Python takes 90. The
    result is `None` if the guard is missing; the caller then compares in Python.
    """
    if _guards is None:
        return None
    sizes: Any = [list(t.shape) for t in tensors]
    strides: Any = [list(t.stride()) for t in tensors]
    guard = _guards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    check: Callable[..., bool] = guard.check
    return check


def unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor inside the wrapper of one transform of torch.func (torch 2.0 and later)."""
    inner: torch.Tensor = torch._C._functorch.get_unwrapped(tensor)
    return inner


def is_forward_mode() -> bool:
    """Return True inside `torch.autograd.forward_ad.dual_level` (torch 1.11 and later)."""
    return torch.autograd.forward_ad._current_level >= 0


def is_dual(tensor: torch.Tensor) -> bool:
    """Return True if a tensor has a forward-mode tangent (torch 1.11 and later).

    The result is False below autograd, where custom operators call themselves again: no operator has
    tangents there, and `unpack_dual` fails. (`_dispatch_tls_is_dispatch_key_excluded`, torch 1.11.)
    """
    if not is_forward_mode():
        return False
    key = torch._C.DispatchKey.AutogradFunctionality
    is_below = torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    if is_below and not torch.is_inference_mode_enabled():
        return False
    unpacked: Any = torch.autograd.forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return unpacked.tangent is not None


def sequence_number() -> int:
    """Return the number of the next autograd node of this thread (torch 2.1 and later; else 0)."""
    number = getattr(torch.autograd, "_get_sequence_nr", None)
    return 0 if number is None else int(number())


def inside_functorch() -> str | None:
    """Return the name of the innermost functorch transform that is running (torch 2.0 and later)."""
    top = torch._C._functorch.peek_interpreter_stack()
    return None if top is None else str(top.key()).rpartition(".")[2].lower()


def inside_vmap() -> bool:
    """Return True if one of the functorch transforms that are running is vmap (torch 2.0 and later)."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(each.key() == torch._C._functorch.TransformType.Vmap for each in stack)


def is_forward_mode_nested() -> bool:
    """Return True inside of a torch.func.jvp that runs inside of another (torch 2.0 and later)."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return [each.key() for each in stack].count(torch._C._functorch.TransformType.Jvp) > 1


def is_wrapped(tensor: torch.Tensor) -> bool:
    """Return True for a tensor in the wrapper of a functorch transform (torch 2.0 and later)."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


_VIEW_MAPS: bool = torch._C._dispatch_has_kernel_for_dispatch_key(
    "aten::view.dtype", "FuncTorchBatched"
)


def of_same_bits(integers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert integers to another integer dtype of the same width without changing their bits.

    The result is a view, or a cast under a transform where torch has no batching rule for views (2.11).
    """
    if _VIEW_MAPS or torch.compiler.is_dynamo_compiling() or inside_functorch() is None:
        return integers.view(dtype)
    return integers.to(dtype)


def function_modes() -> list[Any]:
    """Return the active TorchFunctionModes (torch 2.0 and later), outermost first."""
    stack: Callable[[], list[Any]] = torch.overrides._get_current_function_mode_stack
    return list(stack())


def function_mode_depth() -> int:
    """Return the number of active TorchFunctionModes (torch 2.0 and later; takes 0.1 µs)."""
    return torch._C._len_torch_function_stack()


def is_unintercepted() -> bool:
    """Return True if no mode, transform, trace or profiler sees the operators of this thread.

    (torch 2.11 and later; takes 0.4 µs.)
    """
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )


_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def norms(tensors: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the norm of each CPU tensor, with the same bits as `torch.linalg.vector_norm`.

    One C++ call computes all of them: 7 µs for six tensors instead of 12. (`_foreach_norm` with a
    dtype, torch 2.3 and later.)
    """
    return list(torch._foreach_norm(tensors, 2, dtype=dtype))


def value_at_hand(flag: torch.Tensor) -> bool | None:
    """Return the value of a bool CPU tensor; `None` for a traced or wrapped tensor or another device."""
    if (
        type(flag) is not torch.Tensor
        or flag.device.type != "cpu"
        or torch.compiler.is_dynamo_compiling()
        or is_wrapped(flag)
    ):
        return None
    try:
        return bool(flag)
    except RuntimeError:  # a trace of torch's, such as that of torch.func.linearize, refuses reads
        return None


def unwatched() -> contextlib.AbstractContextManager[Any]:
    """Disable every TorchFunctionMode inside the context (torch 1.13 and later): saves 1 µs a call.

    Use it for operations that draw nothing: reading attributes, detaching tensors, weighting a loss.
    """
    return torch._C.DisableTorchFunction()


def any_autocast() -> bool:
    """Return True if autocast is on for any device (torch 2.1 and later; takes 0.1 µs)."""
    return torch._C._is_any_autocast_enabled()


def autocast_state() -> tuple[tuple[str, torch.dtype], ...]:
    """Return the devices under autocast and their dtypes."""
    return tuple(
        (device, torch.get_autocast_dtype(device))
        for device in _AUTOCAST_DEVICES
        if torch.is_autocast_enabled(device)
    )


def without_autocast() -> contextlib.AbstractContextManager[Any]:
    """Turn off autocast on every device, for a graph that contains the casts (torch 2.1 and later)."""
    return torch._C._DisableAutocast()


def autocast_now() -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return a function that makes a context with the autocast settings in force at this call."""
    found = [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        for device in _AUTOCAST_DEVICES
    ]

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for device, dtype, enabled in found:
                if enabled != torch.is_autocast_enabled(device) or (
                    enabled and dtype != torch.get_autocast_dtype(device)
                ):
                    stack.enter_context(
                        torch.autocast(device, dtype, enabled=enabled, cache_enabled=False)
                    )
            yield

    return again


@contextlib.contextmanager
def interning() -> Iterator[None]:
    """Turn off autocast's cache of cast weights, which would keep fake tensors after a trace."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextlib.contextmanager
def aside() -> Iterator[FakeTensorMode]:
    """Run operators in a trace without recording them (torch 2.0 and later); yield the fake mode."""
    mode = detect_fake_mode()
    assert isinstance(mode, FakeTensorMode)
    with disable_proxy_modes_tracing():
        yield mode


def trace_inner(fn: Callable[..., Any], fakes: Sequence[torch.Tensor]) -> fx.GraphModule:
    """Trace `fn` inside another trace, whose tensors become constants (torch 2.1 and later)."""
    how: Any = {"_allow_non_fake_inputs": True, "_allow_fake_constant": True}
    return make_fx(fn, REWRITTEN, tracing_mode="real", **how)(*fakes)


def nodes_ever(graph: fx.Graph) -> list[fx.Node]:
    """Return a graph's nodes, including erased ones that it still refers to (torch 2.0 and later)."""
    names = getattr(getattr(graph, "_graph_namespace", None), "_obj_to_name", ())
    return [*graph.nodes, *(node for node in names if isinstance(node, fx.Node))]


@contextlib.contextmanager
def silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextlib.contextmanager
def as_compiled() -> Iterator[None]:
    """Make `torch.optim` keep its scalars on the device, as in compiled code (torch 2.1 and later)."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def with_autograd() -> contextlib.AbstractContextManager[Any]:
    """Turn on autograd inside an operator's kernel, where torch excludes it (torch 1.13 and later)."""
    left_out = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradCPU", "AutogradCUDA", "AutogradXPU", "AutogradMPS", "AutogradOther"):
        left_out = left_out.remove(getattr(torch._C.DispatchKey, name))
    left_out = left_out.remove(torch._C.DispatchKey.ADInplaceOrView)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), left_out)
