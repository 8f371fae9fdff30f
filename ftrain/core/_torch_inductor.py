"""Private APIs of inductor that compiled programs use.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ftrain.core._recursion import limit_restored
from ftrain.core._torch import silent
from ftrain.core._torch_distributions import without_validation
from ftrain.core._torch_inductor_sums import in_order

__all__ = [
    "FACTORIZED",
    "cpp_compilers",
    "decompositions",
    "first_run",
    "inductor_compile",
    "is_amd_with_avx512",
    "onednn_product",
    "triton_error",
]

# Operators that return factors of a matrix or, if the matrix is contiguous, of its transpose.
FACTORIZED = (
    torch.ops.aten._linalg_det.default,
    torch.ops.aten._linalg_slogdet.default,
    torch.ops.aten._linalg_solve_ex.default,
)

# Inductor stores no compiled graph that contains one of these operators, although its key covers the
# graphs of their branches and bodies. A training step that clips by norm then compiles again in each
# process: 22 s of CPU for a GPT of 0.8 M parameters with cached kernels, 2.8 s with the graph cached
# (2.13; `unsafe_marked_cacheable_functions`, 2.8 and later). The values become part of the key: count
# them up when the code generated for these operators changes (`keep_carries`).
_CACHED_CONTROL_FLOW = {
    f"torch.ops.higher_order.{name}": "ftrain.1" for name in ("cond", "while_loop", "scan")
}

_watching = threading.RLock()
_kept: list[torch.library.Library] = []


def inductor_compile(
    graph: fx.GraphModule, inputs: Sequence[torch.Tensor], mode: str | None, config: dict[str, Any]
) -> Callable[..., Any]:
    """Compile one graph into one function (`standalone_compile`, torch 2.8 and later)."""
    import torch._inductor as inductor  # noqa: PLC0415  costs a second; only compiled steps need it

    # ftrain's guard checks sizes and strides before every call, so inductor's assertions are disabled,
    # which saves 0.25 µs per input.
    patches = {
        "size_asserts": False,
        "unsafe_marked_cacheable_functions": _CACHED_CONTROL_FLOW,
        **config,
    }
    on_cuda = any(tensor.device.type == "cuda" for tensor in inputs)
    if on_cuda and torch.are_deterministic_algorithms_enabled():
        # With this option, kernel configurations that change bits are not chosen by timing (2.9 and
        # later).
        patches |= {"deterministic": True} if hasattr(inductor.config, "deterministic") else {}
    keep_layouts()
    keep_carries()
    if mode is not None:
        patches.update(inductor.list_mode_options(mode))
        if on_cuda and "triton.cudagraphs" in patches:
            # Inductor does not replay graphs that write to their inputs, and copies all other inputs at
            # each call, with a wait for the device (2.14). `compile/_cuda_graph.py` captures the graph
            # instead.
            patches["triton.cudagraphs"] = False

    def compiled_with(patches: dict[str, Any]) -> Any:
        # Inductor warns if the program cannot be saved as an artifact, which is not needed here.
        with (
            silent("torch._inductor.standalone_compile"),
            in_order(),
            without_validation(),  # restores the validation default, which Dynamo changes
            limit_restored(),
        ):
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
    # The artifact's __call__ only forwards to this function.
    compiled: Callable[..., Any] = getattr(artifact, "_compiled_fn", artifact)
    return compiled


def decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Return inductor's decompositions by operator (`select_decomp_table`, torch 2.0 and later)."""
    from torch._inductor.decomposition import select_decomp_table  # noqa: PLC0415  costs a second

    table: Mapping[Any, Callable[..., Any]] = select_decomp_table()
    return table


@functools.cache
def keep_layouts() -> None:
    """Make inductor keep the traced memory layouts of determinants and linear solves (`FACTORIZED`).

    The derivative of such an operator solves with the factors of the matrix or of its transpose,
    depending on the layout in the trace. If inductor chooses another layout, the gradient is wrong
    (2.13). (`add_layout_constraint`, 2.0 and later.)
    """
    from torch._inductor import lowering  # noqa: PLC0415  costs a second

    for operator in FACTORIZED:
        lowering.add_layout_constraint(operator, lowering.constrain_to_fx_strides)


@functools.cache
def keep_carries() -> None:
    """Prevent inductor from writing other values into the memory of a loop's carry (2.13).

    A loop whose body returns a carry unchanged, or plus zero, returns the memory that it got. Inductor
    treats input and output as two buffers, and may reuse the first after the loop although the second is
    still needed, which gives wrong values. (`ir.WhileLoop`, 2.5 and later; `never_reuse_buffers`, 2.0
    and later. Versions without them do not have the error.)
    """
    from torch._inductor import ir  # noqa: PLC0415  costs two seconds
    from torch._inductor.virtualized import V  # noqa: PLC0415

    loop: Any = getattr(ir, "WhileLoop", None)
    if loop is None:
        return
    init, create = loop.__init__, loop.create.__func__

    def keep(nodes: Any) -> None:
        kept = getattr(V.graph, "never_reuse_buffers", None)
        if kept is not None:
            kept.update(node.get_name() for node in nodes if isinstance(node, ir.IRNode))

    def init_and_keep(self: Any, carried_inputs: Any, *args: Any, **kwargs: Any) -> None:
        init(self, carried_inputs, *args, **kwargs)
        keep(carried_inputs)

    def create_and_keep(cls: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = create(cls, *args, **kwargs)
        keep(outputs if isinstance(outputs, (list, tuple)) else [outputs])
        return outputs

    loop.__init__, loop.create = init_and_keep, classmethod(create_and_keep)


def cpp_compilers() -> tuple[str, ...] | None:
    """Return the compilers that inductor would try for the CPU, in order; `None` if unknown.

    The compilers are unknown if inductor would download a compiler, or generates code other than C++.
    (`config.cpp.cxx`: torch 2.0 and later; `config.cpu_backend`: torch 2.5 and later.)
    """
    from torch._inductor import config  # noqa: PLC0415  costs two seconds

    named = getattr(config.cpp, "cxx", None)
    tried = tuple(named) if isinstance(named, (list, tuple)) else (named,)
    fetches = None in tried and os.environ.get("TORCH_INDUCTOR_INSTALL_GXX")
    other = getattr(config, "cpu_backend", "cpp") != "cpp" or config.is_fbcode()
    found = tuple(each for each in tried if each is not None)
    return None if fetches or other or not found else found


def triton_error() -> Exception | None:
    """Return the exception that Triton raises when it loads its driver; `None` if it raises none.

    (`triton.runtime.driver.active`, Triton 3.0 and later. Without Triton, inductor raises its own
    error.)
    """
    try:
        runtime = importlib.import_module("triton.runtime")  # takes half a second
        runtime.driver.active.get_current_device()
    except ImportError:
        return None
    except Exception as error:
        return error
    return None


def first_run(
    compiled: Callable[..., Any], inputs: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], Callable[[list[torch.Tensor]], Sequence[torch.Tensor]] | None]:
    """Run a compiled function; return its outputs, and a faster callable without needless wrappers.

    AOTAutograd wraps the code in functions that take 5 µs per call. If these are observed to pass on the
    same input and output objects, and all tensors are on the CPU, the code is equivalent without them.
    (`CompiledFxGraph.current_callable`, torch 2.1 and later.)
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
    """Return True if inductor can skip compiling three small programs that probe the compiler.

    The probe takes 7 s with an empty cache. On x86-64, the vector instructions are chosen by the
    processor's features, and every compiler of the last ten years supports them; if one does not,
    compilation fails and is repeated with the probe. (`cpp.vec_isa_ok`: torch 2.0 and later.)
    """
    usual = sys.platform == "linux" and platform.machine() == "x86_64"
    return usual and getattr(config.cpp, "vec_isa_ok", True) is None


def onednn_product() -> Any:
    """Return oneDNN's operator `(a, weight, bias) -> a @ weight.T + bias`; `None` if it is unavailable.

    This is inductor's operator for linear layers (`mkldnn._linear_pointwise`, 2.0 and later), called
    with factors of any strides, which inductor itself would make contiguous first. The result is `None`
    on processors other than AMD's with AVX-512, on which MKL is as fast.
    """
    linear = getattr(getattr(torch.ops.mkldnn, "_linear_pointwise", None), "default", None)
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if linear is None or not has_onednn or not is_amd_with_avx512():
        return None
    return _product_operator(linear)


@functools.cache
def _product_operator(linear: Any) -> Any:
    from torch._inductor import lowering  # noqa: PLC0415  costs a second

    rest: Any = ("none", [], "")  # arguments for no activation
    library: Any = torch.library.Library("ftrain", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("product(Tensor a, Tensor weight, Tensor? bias) -> Tensor")
    library.impl("product", lambda *args: linear(*args, *rest), "CompositeExplicitAutograd")
    _kept.append(library)  # a library unregisters its operators when it is freed
    product = torch.ops.ftrain.product.default
    call = lowering.fallback_handler(linear, add_to_fallback_set=False)
    lowering.register_lowering(product, type_promotion_kind=None)(lambda *args: call(*args, *rest))
    return product


@functools.cache
def is_amd_with_avx512() -> bool:
    """Return True on an AMD processor with AVX-512, on which MKL does not use AVX-512."""
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
