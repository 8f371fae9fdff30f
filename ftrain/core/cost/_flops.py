"""Floating-point operations and bytes of operators, computed from the shapes of tensors alone.

Only products, convolutions and attention count, as is usual for the FLOPs of a model, by the formulas of
`torch.utils.flop_counter`: one multiplication and one addition are two operations, and causal attention
counts in full. All other operators count as 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from ftrain.core._torch_dispatch import HigherOrderOperator, OpOverload, makes_values, names_of

__all__ = ["NONE", "Work", "graph_work", "is_counted", "operator_name", "work_of"]


class Work(NamedTuple):
    """Calls, FLOPs and bytes of one operator, or of several together.

    Attributes:
        calls: the number of calls.
        flops: floating-point operations by dtype of the factors, such as `{"float32": 1024}`.
        bytes: bytes of the tensors that it reads and writes, each tensor once per call.
    """

    calls: int
    flops: Mapping[str, int]
    bytes: int

    def plus(self, other: Work, times: int = 1) -> Work:
        """Return this work plus `other`, counted `times` times."""
        flops = Counter(self.flops)
        for dtype, count in other.flops.items():
            flops[dtype] += count * times
        return Work(self.calls + other.calls * times, dict(flops), self.bytes + other.bytes * times)


NONE = Work(0, {}, 0)

# FLOP formulas of torch, a registry without type annotations.
_FORWARD: Callable[..., int] = sdpa_flop_count
_BACKWARD: Callable[..., int] = sdpa_backward_flop_count


def graph_work(module: fx.GraphModule) -> dict[str, Work]:
    """Return FLOPs and bytes of each kind of operator in a graph, bodies of loops and branches included.

    The body of a loop of n iterations counts n times. The body of `while_loop`, whose number of
    iterations is unknown, counts once. Of several branches, the one with the most FLOPs counts.
    """
    found: dict[str, Work] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        if isinstance(node.target, HigherOrderOperator):
            times, bodies = _bodies(module, node)
            body = max(bodies, key=_total_flops, default={})
            for name, work in body.items():
                found[name] = found.get(name, NONE).plus(work, times)
        elif is_counted(node.target):
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), _value)
            work = work_of(node.target, args, kwargs, _value(node))
            name = operator_name(node.target)
            found[name] = found.get(name, NONE).plus(work)
    return found


def work_of(
    operator: OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any
) -> Work:
    """Return FLOPs and bytes of one call of an operator, given its arguments and its result."""
    flops = _flops(operator, args, kwargs, out)
    size = sum({id(t): _nbytes(t) for t in _tensors((args, kwargs, out))}.values())
    return Work(1, {floating_dtype(args): flops} if flops else {}, size)


def operator_name(operator: OpOverload[..., Any]) -> str:
    """Return an operator's name without a final `.default` or `.out`, such as `aten.mm`."""
    return str(operator).removesuffix(".default").removesuffix(".out")


def floating_dtype(args: Any) -> str:
    """Return the dtype of the first floating-point tensor among arguments, such as `bfloat16`."""
    found = (t.dtype for t in _tensors(args) if t.dtype.is_floating_point or t.dtype.is_complex)
    return str(next(found, torch.float32)).removeprefix("torch.")


def _flops(
    operator: OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any
) -> int:
    own = _FORMULAS.get(str(operator))
    if own is not None:
        return int(own(*args))
    formula = flop_registry.get(operator.overloadpacket)
    return int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> int:
    return int(_FORWARD(query.shape, key.shape, value.shape))


def _attention_backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> int:
    return int(_BACKWARD(grad.shape, query.shape, key.shape, value.shape))


def _linear(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> int:
    return 2 * x.numel() * weight.shape[0]


def _dot(x: torch.Tensor, *_: Any) -> int:
    return 2 * x.numel()


def _addmv(_bias: torch.Tensor, matrix: torch.Tensor, *_: Any) -> int:
    return 2 * matrix.numel()


# Views whose schemas do not say so, and a read on the host.
_WITHOUT_KERNEL = ("_unsafe_view", "_reshape_alias", "_local_scalar_dense")

# Operators without a formula in torch 2.13, by name, since some exist in some builds only.
_FORMULAS: dict[str, Callable[..., int]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu.default": _attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": _attention_backward,
    "aten.dot.default": _dot,
    "aten.mv.default": _dot,
    "aten.addmv.default": _addmv,
    "ftrain.product.default": _linear,
    "mkldnn._linear_pointwise.default": _linear,
}


def _bodies(module: fx.GraphModule, node: fx.Node) -> tuple[int, list[dict[str, Work]]]:
    """Return the number of iterations of a loop (1 for a branch), and the work of its bodies."""
    graphs = [
        getattr(module, str(each.target))
        for each in node.all_input_nodes
        if each.op == "get_attr"
        and isinstance(getattr(module, str(each.target), None), fx.GraphModule)
    ]
    if str(node.target) == "scan":
        xs: Any = node.args[2]  # never empty: a scan without any counts its iterations in one
        return int(_value(xs[0]).shape[0]), [graph_work(graph) for graph in graphs]
    return 1, [graph_work(graph) for graph in graphs]


def _total_flops(works: Mapping[str, Work]) -> tuple[int, int]:
    return (
        sum(sum(work.flops.values()) for work in works.values()),
        sum(work.bytes for work in works.values()),
    )


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from _tensors(value)


def _nbytes(tensor: torch.Tensor) -> int:
    """Return the bytes that the elements of a tensor occupy; an expanded axis counts once."""
    if tensor.layout is not torch.strided:
        return tensor.numel() * tensor.element_size()
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.element_size()


def is_counted(operator: Any) -> bool:
    """Return True if an operator computes values, so that it counts as a kernel."""
    return (
        isinstance(operator, OpOverload)
        and makes_values(operator)
        and names_of(operator)[0] not in _WITHOUT_KERNEL
    )
