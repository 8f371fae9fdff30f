"""The parts of torch outside its public surface that `compile` and `scan` stand on.

Each is named here with the versions that have it and what happens without it, so that a new torch is
met in one file. Written for torch 2.11 and later, and run on 2.11, 2.13 and 2.15.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._higher_order_ops.cond import cond_op
from torch._higher_order_ops.scan import scan_op
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx

__all__ = [
    "DATA_DEPENDENT",
    "FakeTensor",
    "FakeTensorMode",
    "any_autocast",
    "as_compiled",
    "aside",
    "autocast_now",
    "autocast_state",
    "cond_operator",
    "cpp_compilers",
    "fake_mode",
    "first_run",
    "function_mode_depth",
    "function_modes",
    "inductor_compile",
    "inside_functorch",
    "interning",
    "is_amd_with_avx512",
    "is_dual",
    "nodes_ever",
    "of_same_bits",
    "onednn_product",
    "recurrent_kernels",
    "scan_operator",
    "sequence_number",
    "tensor_guard",
    "trace",
    "trace_inner",
    "without_autocast",
]

_watching = threading.RLock()
_kept: list[torch.library.Library] = []
_guards = getattr(getattr(torch._C._dynamo, "guards", None), "TensorGuards", None)

# What tracing raises when Python asks for a tensor's value, or a shape depends on one (2.0 and later).
DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException)


def fake_mode() -> FakeTensorMode:
    """A mode that computes shapes only (2.0 and later). Real tensors met on the way are taken along."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def trace(fn: Callable[..., Any], fakes: Sequence[torch.Tensor]) -> fx.GraphModule:
    """The operators that `fn` runs on these fake tensors (`make_fx`, 2.0 and later)."""
    # An error of the user's is raised, and need not be logged as well.
    with _silent("torch._subclasses.fake_tensor"):
        return make_fx(fn, tracing_mode="fake", _allow_non_fake_inputs=True)(*fakes)


def inductor_compile(
    graph: fx.GraphModule, inputs: Sequence[torch.Tensor], mode: str | None, config: dict[str, Any]
) -> Callable[..., Any]:
    """One compiled function for one graph (`standalone_compile`, 2.8 and later)."""
    import torch._inductor as inductor  # noqa: PLC0415  costs a second; only compiled steps need it

    # Our own guard has checked sizes and strides before every call: 0.25 µs an input saved.
    patches = {"size_asserts": False, **config}
    if mode is not None:
        patches.update(inductor.list_mode_options(mode))

    def compiled_with(patches: dict[str, Any]) -> Any:
        # It warns where it could not be saved as an artifact, which nobody asked for.
        with _silent("torch._inductor.standalone_compile"):
            return inductor.standalone_compile(
                graph,
                list(inputs),
                dynamic_shapes="from_example_inputs",
                options={"config_patches": patches},
            )

    if _skips_compiler_probe(inductor.config):
        try:
            artifact = compiled_with({**patches, "cpp.vec_isa_ok": True})
        except Exception as error:
            if "CppCompileError" not in repr(error):
                raise
            artifact = compiled_with(patches)
    else:
        artifact = compiled_with(patches)
    # The artifact's __call__ only forwards to this.
    compiled: Callable[..., Any] = getattr(artifact, "_compiled_fn", artifact)
    return compiled


def cpp_compilers() -> tuple[str, ...] | None:
    """The compilers that inductor would try for the CPU, in order; `None` where nobody can tell.

    Nobody can where it would fetch one itself, or makes its code in another way. (`config.cpp.cxx`: 2.0
    and later; `config.cpu_backend`: 2.5 and later.)
    """
    from torch._inductor import config  # noqa: PLC0415  costs two seconds

    named = getattr(config.cpp, "cxx", None)
    tried = tuple(named) if isinstance(named, (list, tuple)) else (named,)
    fetches = None in tried and os.environ.get("TORCH_INDUCTOR_INSTALL_GXX")
    other = getattr(config, "cpu_backend", "cpp") != "cpp" or config.is_fbcode()
    found = tuple(each for each in tried if each is not None)
    return None if fetches or other or not found else found


def first_run(
    compiled: Callable[..., Any], inputs: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], Callable[[list[torch.Tensor]], Sequence[torch.Tensor]] | None]:
    """Run it, and watch for the code that inductor made: `(outputs, code)`.

    AOTAutograd wraps the code for what may be needed around it, 5 µs a call. Where the wrappers were
    seen to hand on the very inputs and the very outputs, and there is a CPU only, `code` does the same
    without them. (`CompiledFxGraph.current_callable`, 2.1 and later.)
    """
    from torch._inductor import output_code  # noqa: PLC0415  costs a second

    kind = getattr(output_code, "CompiledFxGraph", None)
    if kind is None or any(t.device.type != "cpu" for t in inputs):
        return list(compiled(*inputs)), None
    seen: list[tuple[Any, list[Any], Sequence[Any]]] = []

    def watched(self: Any, args: list[Any]) -> Any:
        given = list(args)  # the code empties the list that it is given
        results = usual(self, args)
        seen.append((self, given, results))
        return results

    with _watching:
        usual = kind.__call__
        kind.__call__ = watched
        try:
            outputs = list(compiled(*inputs))
        finally:
            kind.__call__ = usual
    if len(seen) == 1:
        graph, given, results = seen[0]
        if _same(given, inputs) and _same(results, outputs):
            return outputs, getattr(graph, "current_callable", None)
    return outputs, None


def _same(xs: Sequence[Any], ys: Sequence[Any]) -> bool:
    return len(xs) == len(ys) and all(x is y for x, y in zip(xs, ys, strict=True))


def _skips_compiler_probe(config: Any) -> bool:
    """Whether inductor need not compile three small programs to see what the compiler can do.

    That takes 7 s from an empty cache. On x86-64 the processor's own word decides which vector
    instructions are used, and every compiler of the last ten years knows those; one that does not
    fails, and then the probe is made after all. (`cpp.vec_isa_ok`: 2.0 and later.)
    """
    usual = sys.platform == "linux" and platform.machine() == "x86_64"
    return usual and getattr(config.cpp, "vec_isa_ok", True) is None


def onednn_product() -> Any:
    """An operator `(a, weight, bias) -> a @ weight.T + bias` by oneDNN in a compiled graph, or `None`.

    It is inductor's own operator for linear layers (`mkldnn._linear_pointwise`, 2.0 and later), handed
    factors of any strides where inductor itself would first make them contiguous. `None` where MKL is
    as good: on processors other than AMD's with AVX-512.
    """
    linear = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if linear is None or not has_onednn or not is_amd_with_avx512():
        return None
    return _product_operator(linear)


@functools.cache
def _product_operator(linear: Any) -> Any:
    from torch._inductor import lowering  # noqa: PLC0415  costs a second

    rest: Any = ("none", [], "")  # no activation
    library: Any = torch.library.Library("ftrain", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("product(Tensor a, Tensor weight, Tensor? bias) -> Tensor")
    library.impl("product", lambda *args: linear(*args, *rest), "CompositeExplicitAutograd")
    _kept.append(library)  # it unregisters its operators when it goes
    product = torch.ops.ftrain.product.default
    call = lowering.fallback_handler(linear, add_to_fallback_set=False)
    lowering.register_lowering(product, type_promotion_kind=None)(lambda *args: call(*args, *rest))
    return product


@functools.cache
def is_amd_with_avx512() -> bool:
    """Whether this is a processor whose AVX-512 MKL leaves unused."""
    if (
        not sys.platform.startswith("linux")
        or "AVX512" not in torch.backends.cpu.get_cpu_capability()
    ):
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            return any("AuthenticAMD" in line for line in cpuinfo if line.startswith("vendor_id"))
    except OSError:
        return False


def tensor_guard(tensors: Sequence[torch.Tensor]) -> Callable[..., bool] | None:
    """A C++ check that tensors still have these types, dtypes, devices, shapes and strides.

    Dynamo's own guard (2.0 and later): 20 µs for 300 tensors, where Python takes 90. `None` where it
    is missing; the caller then compares in Python.
    """
    if _guards is None:
        return None
    sizes: Any = [list(t.shape) for t in tensors]
    strides: Any = [list(t.stride()) for t in tensors]
    guard = _guards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
    check: Callable[..., bool] = guard.check
    return check


def is_dual(tensor: torch.Tensor) -> bool:
    """Return True if a tensor has a forward-mode tangent (1.11 and later)."""
    if torch.autograd.forward_ad._current_level < 0:
        return False
    unpacked: Any = torch.autograd.forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return unpacked.tangent is not None


def sequence_number() -> int:
    """The number of the next autograd node of this thread (2.1 and later; 0 if it is missing)."""
    number = getattr(torch.autograd, "_get_sequence_nr", None)
    return 0 if number is None else int(number())


@contextlib.contextmanager
def recurrent_kernels(device_type: str) -> Iterator[None]:
    """Where recurrent layers find a kernel: oneDNN has none for float16 autocast on a CPU (2.13).

    It raises "could not create a primitive descriptor"; torch's own, of single operators, serves.
    """
    refused = (
        device_type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.float16
        and torch._C._get_mkldnn_enabled()
    )
    if not refused:
        yield
        return
    # Not torch.backends.mkldnn.flags, which warns about TF32 on the way.
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


def inside_functorch() -> str | None:
    """The name of the innermost functorch transform that is running (2.0 and later)."""
    top = torch._C._functorch.peek_interpreter_stack()
    return None if top is None else str(top.key()).rpartition(".")[2].lower()


_VIEW_MAPS: bool = torch._C._dispatch_has_kernel_for_dispatch_key(
    "aten::view.dtype", "FuncTorchBatched"
)


def of_same_bits(integers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Integers as others of their width: a view, but a cast in a vmap of torch 2.11, which has none."""
    if _VIEW_MAPS or torch.compiler.is_dynamo_compiling() or inside_functorch() is None:
        return integers.view(dtype)
    return integers.to(dtype)


def function_modes() -> list[Any]:
    """The TorchFunctionModes that stand around the caller (2.0 and later), outermost first."""
    stack: Callable[[], list[Any]] = torch.overrides._get_current_function_mode_stack
    return list(stack())


def function_mode_depth() -> int:
    """How many TorchFunctionModes stand around the caller: 0.1 µs (2.0 and later)."""
    return torch._C._len_torch_function_stack()


_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def any_autocast() -> bool:
    """Whether autocast is on for any device: 0.1 µs (2.1 and later)."""
    return torch._C._is_any_autocast_enabled()


def autocast_state() -> tuple[tuple[str, torch.dtype], ...]:
    """Which devices autocast to which dtype."""
    return tuple(
        (device, torch.get_autocast_dtype(device))
        for device in _AUTOCAST_DEVICES
        if torch.is_autocast_enabled(device)
    )


def without_autocast() -> contextlib.AbstractContextManager[Any]:
    """Autocast off on every device (2.1 and later): what a traced graph casts is written in it."""
    return torch._C._DisableAutocast()


def autocast_now() -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return a function that makes a context with the autocast of the caller, on or off."""
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
    """Autocast's cache of cast weights off: it must not hold the fake tensors of a trace."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextlib.contextmanager
def aside() -> Iterator[FakeTensorMode]:
    """Inside a trace: what runs here is not recorded (2.0 and later). Yields the trace's fake mode."""
    mode = detect_fake_mode()
    assert isinstance(mode, FakeTensorMode)
    with disable_proxy_modes_tracing():
        yield mode


def trace_inner(fn: Callable[..., Any], fakes: Sequence[torch.Tensor]) -> fx.GraphModule:
    """`trace` for use within another trace, whose tensors become constants (2.1 and later)."""
    return make_fx(fn, tracing_mode="real", _allow_non_fake_inputs=True, _allow_fake_constant=True)(
        *fakes
    )


def nodes_ever(graph: fx.Graph) -> list[fx.Node]:
    """A graph's nodes, and the erased ones that it keeps for their names (2.0 and later)."""
    names = getattr(getattr(graph, "_graph_namespace", None), "_obj_to_name", ())
    return [*graph.nodes, *(node for node in names if isinstance(node, fx.Node))]


def scan_operator(
    body: fx.GraphModule,
    carry: Sequence[torch.Tensor],
    xs: Sequence[torch.Tensor],
    captured: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """The loop as one operator of the graph (2.6 and later): the last carry, then the stacked ys.

    It needs something to carry and something to iterate over.
    """
    with warnings.catch_warnings():
        # The operator clones its inputs as an example, fake ones too, aligned by their address.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        return list(scan_op(body, list(carry), list(xs), tuple(captured)))


def cond_operator(
    predicate: torch.Tensor,
    taken: fx.GraphModule,
    left: fx.GraphModule,
    operands: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """One of two graphs as one operator (2.4 and later). `torch.cond` would trace them once more."""
    return list(cond_op(predicate, taken, left, tuple(operands)))


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextlib.contextmanager
def as_compiled() -> Iterator[None]:
    """What torch's optimizers ask before they read a number off the device (2.1 and later)."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def with_autograd() -> contextlib.AbstractContextManager[Any]:
    """Autograd on inside an operator's kernel, where the dispatcher has left it out (1.13 and later)."""
    left_out = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradCPU", "AutogradCUDA", "AutogradXPU", "AutogradMPS", "AutogradOther"):
        left_out = left_out.remove(getattr(torch._C.DispatchKey, name))
    left_out = left_out.remove(torch._C.DispatchKey.ADInplaceOrView)
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), left_out)
