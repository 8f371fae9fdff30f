"""Casts to the traced dtypes, for operators that inductor decomposes to a result of another dtype.

On CUDA, `softmax` of float16 under autocast returns float32, and its derivative rounds to float16.
Inductor's decomposition of the derivative does not round (torch 2.11 to 2.14), and the next matrix
product, which was traced in float16, raises for float32.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from ftrain.core._torch_dispatch import OpOverload
from ftrain.core._torch_inductor import decompositions

__all__ = ["keep_traced_dtypes"]

_CASTS = (torch.ops.aten._to_copy.default, torch.ops.prims.convert_element_type.default)


def keep_traced_dtypes(graph: fx.GraphModule) -> None:
    """Insert a cast after each operator whose decomposition returns another dtype than was traced.

    Only operators with several dtypes are tested, by running their decompositions on fake tensors.
    """
    table = decompositions()
    for module in graph.modules():  # bodies of scan and cond are separate modules
        if not isinstance(module, fx.GraphModule):
            continue
        for node in list(module.graph.nodes):
            if node.op == "call_function" and _mixes_dtypes(node):
                for result, traced in _differing(node, table.get(node.target)):
                    _cast(result, traced)


def _mixes_dtypes(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload) or node.target in _CASTS:
        return False
    values = [*_tensors(node.meta.get("val")), *_arguments(node)]
    return len({value.dtype for value in values if value.is_floating_point()}) > 1


def _differing(node: fx.Node, decomposed: Any) -> Iterator[tuple[fx.Node, torch.dtype]]:
    """Yield each result that gets another dtype when its node is decomposed, and its traced dtype."""
    if decomposed is None:
        return
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    mode = next(value.fake_mode for value in _arguments(node))  # type: ignore[attr-defined]
    try:
        with mode:
            found = decomposed(*args, **kwargs)
    except Exception:  # inductor will raise an error with more information
        return
    if isinstance(found, torch.Tensor):
        if found.dtype != node.meta["val"].dtype:
            yield node, node.meta["val"].dtype
        return
    if not isinstance(found, (tuple, list)):
        return  # NotImplemented: the operator is not decomposed for these arguments
    for user in list(node.users):
        value = user.meta.get("val")
        if user.target is not operator.getitem or not isinstance(value, torch.Tensor):
            continue
        place: Any = user.args[1]
        if found[place].dtype != value.dtype:
            yield user, value.dtype


def _cast(node: fx.Node, dtype: torch.dtype) -> None:
    with node.graph.inserting_after(node):
        cast = node.graph.call_function(_CASTS[0], (node,), {"dtype": dtype})
    node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
    cast.meta["val"] = node.meta["val"]


def _arguments(node: fx.Node) -> Iterator[torch.Tensor]:
    for each in node.all_input_nodes:
        yield from _tensors(each.meta.get("val"))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
