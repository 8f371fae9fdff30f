"""Compilation of a pure graph to a function that maps a list of tensors to a list of tensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import fx

from ftrain.core import _torch, _torch_inductor
from ftrain.core._printing import chain_prints
from ftrain.core._sums_in_order import order_sums
from ftrain.core._torch_fake import fake_kernels
from ftrain.core._torch_tensors import is_zero_tensor
from ftrain.core.compile._dtypes import keep_traced_dtypes
from ftrain.core.compile._errors import causes, first_line
from ftrain.core.compile._graph import storage_of, written_by
from ftrain.core.compile._one_channel import convolve_channels_last
from ftrain.core.compile._pooling import split_pools
from ftrain.core.compile._toolchain import check_compiler, no_compiler

__all__ = ["Backend", "Shortened", "cloned", "lower", "run_code", "separate", "shared_outputs"]

aten = torch.ops.aten

Backend = Literal["inductor", "eager"]
Lowered = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
Code = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]


def lower(
    graph: fx.GraphModule,
    tensors: Sequence[torch.Tensor],
    backend: Backend,
    mode: str | None,
    *,
    n_donated: int,
    cpp_wrapper: bool = False,
) -> Lowered:
    """Compile a traced graph, modified in place, for inputs with the shapes and dtypes of `tensors`.

    Args:
        tensors: examples of the inputs: the tensors in the arguments, then the captured ones.
        n_donated: the number of leading inputs that the graph writes to.

    Raises:
        CompilerMissingError: inductor found no C++ compiler, or Triton no C compiler.
    """
    operators = any(node.op == "call_function" for node in graph.graph.nodes)
    _drop_unused_tensors(graph)
    _allow_other_layouts(graph)
    if backend == "eager" or not operators:
        for module in _graphs(graph):
            order_sums(module.graph)
            module.recompile()
        _forget(graph)
        forward = graph.forward

        def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
            with torch.no_grad():
                return forward(*inputs)  # type: ignore[no-any-return]

        return run
    if any(tensor.device.type == "cuda" for tensor in tensors):
        check_compiler(device_type="cuda")
    chain_prints(graph)
    _drop_empty_parts_of_cats(graph)
    if split_pools(graph.graph):
        convolve_channels_last(graph.graph)
    try:
        with torch.no_grad(), _torch.without_autocast(), fake_kernels():
            keep_traced_dtypes(graph)
            # Imported here, because torch's compiler takes a second to load.
            from ftrain.core.compile import _inductor  # noqa: PLC0415

            compiled = _torch_inductor.inductor_compile(
                graph, tensors, mode, _inductor.passes(n_donated > 0) | {"cpp_wrapper": cpp_wrapper}
            )
    except Exception as error:
        if _is_compiler_missing(error):
            raise no_compiler(first_line(error)) from error
        raise
    return Shortened(compiled, n_donated)


class Shortened:
    """Function that skips inductor's wrappers if they had no effect in the first call.

    Attributes:
        code: the function without wrappers; `None` before the first call, and if they had an effect.
    """

    __slots__ = ("_compiled", "_n_donated", "_tried", "code")

    def __init__(self, compiled: Callable[..., Any], n_donated: int) -> None:
        self._compiled = compiled
        self._n_donated = n_donated
        self._tried = False
        self.code: Code | None = None

    def __call__(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if self.code is not None:
            return run_code(self.code, inputs, self._n_donated)
        if self._tried:
            return self._compiled(*inputs)  # type: ignore[no-any-return]
        self._tried = True
        outputs, self.code = _torch_inductor.first_run(self._compiled, inputs)
        return outputs


def run_code(code: Code, inputs: Sequence[torch.Tensor], n_donated: int) -> Sequence[torch.Tensor]:
    """Call machine code without inductor's wrappers."""
    # Without the wrappers, the version counters of written inputs must be increased here.
    torch.autograd.graph.increment_version(inputs[:n_donated])
    return code(list(inputs))  # the code empties the list


def _drop_unused_tensors(graph: fx.GraphModule) -> None:
    """Delete the tensors that the trace stored in a graph and that no node reads.

    These tensors are fake. Inductor would copy the graph with them, with their mode, and with the weak
    references to storages in the mode. A copied reference is freed without being counted, which corrupts
    the heap (torch 2.13).
    """
    for module in _graphs(graph):
        read = {node.target for node in module.graph.find_nodes(op="get_attr")}
        stored = [*module._parameters, *module._buffers, *vars(module)]
        for name in stored:
            if name not in read and isinstance(getattr(module, name), torch.Tensor):
                delattr(module, name)


def _allow_other_layouts(graph: fx.GraphModule) -> None:
    """Replace `view` by `reshape`, since values may have other strides than in the trace.

    For some inputs, fake kernels return other strides than the operators (`softplus_backward` of a
    transposed gradient), and inductor traces the graph again with operators decomposed. Then `view`
    raises "view size is not compatible ..." or "Cannot view a tensor with shape ... and strides ..."
    (2.13). If the strides fit, `reshape` returns the same view. Views that are written to are not
    replaced.
    """
    for module in _graphs(graph):
        into = {
            storage_of(target)
            for node in module.graph.nodes
            for target in written_by(node)
            if isinstance(target, fx.Node)
        }
        for view in (aten.view.default, aten._unsafe_view.default):
            for node in module.graph.find_nodes(op="call_function", target=view):
                if storage_of(node) not in into:
                    node.target = aten.reshape.default
        module.recompile()


def _drop_empty_parts_of_cats(graph: fx.GraphModule) -> None:
    """Replace each concatenation that has a single non-empty part by a copy of that part."""
    for module in _graphs(graph):
        for node in module.graph.find_nodes(op="call_function", target=aten.cat.default):
            _drop_empty_parts(node)


def _drop_empty_parts(cat: fx.Node) -> None:
    """Replace a concatenation that has a single non-empty part by a contiguous copy of it.

    Inductor decomposes it to a clone, which keeps the part's strides (torch 2.13).
    """
    parts = [part for part in cat.args[0] if part.meta["val"].numel()]  # type: ignore[union-attr]
    value = cat.meta["val"]
    if len(parts) == 1 and value.is_contiguous():
        cat.target, cat.args = aten._to_copy.default, (parts[0],)
        cat.kwargs = {"dtype": value.dtype, "memory_format": torch.contiguous_format}


def _forget(graph: fx.GraphModule) -> None:
    """Delete the metadata of nodes, such as fake tensors, which running the graph does not need."""
    for module in _graphs(graph):
        for node in _torch.nodes_ever(module.graph):
            node.meta.clear()


def _graphs(graph: fx.GraphModule) -> list[fx.GraphModule]:
    """Return a graph and those of the bodies of its loops and branches."""
    return [module for module in graph.modules() if isinstance(module, fx.GraphModule)]


def shared_outputs(inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> list[int]:
    """Return the places of the outputs that share memory with an input or an earlier output.

    Compilers merge equal expressions and remove copies, so that two outputs, or an output and a donated
    input, may share memory although they were separate in the graph. This depends only on the compiled
    code, so that a check of the first call's outputs suffices.

    A zero derivative (such as that of `torch.sgn`) may be returned as a tensor without memory, which
    cannot be written to. It counts as shared.
    """
    taken = {t.untyped_storage().data_ptr() for t in inputs if t.numel()}
    shared = []
    for i, output in enumerate(outputs):
        if is_zero_tensor(output):
            shared.append(i)
            continue
        address = output.untyped_storage().data_ptr()
        if output.numel() and address in taken:
            shared.append(i)
        taken.add(address)
    return shared


def separate(run: Lowered, shared: Sequence[int]) -> Lowered:
    """Wrap `run` to clone the outputs at the places `shared`."""
    if not shared:
        return run
    return lambda inputs: cloned(run(inputs), shared)


def cloned(outputs: Sequence[torch.Tensor], places: Sequence[int]) -> list[torch.Tensor]:
    """Return the outputs, with clones at some places."""
    results = list(outputs)
    for i in places:
        results[i] = results[i].clone()
    return results


def _is_compiler_missing(error: BaseException) -> bool:
    names = {type(cause).__name__ for cause in causes(error)}
    if "InvalidCxxCompiler" in names:
        return True
    return (
        "CppCompileError" not in names
        and not any(map(shutil.which, ("c++", "g++", "clang++")))
        and ("FileNotFoundError" in names)
    )
