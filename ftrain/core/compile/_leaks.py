"""Errors for tensors that cross the border of a trace in a way that loses their values or derivatives.

A traced tensor that leaves its trace, in an output or in an object that outlives it, has no values, but
later code would treat it as a tensor with values. A captured tensor would lose its gradient.
"""

from __future__ import annotations

import gc
import types
from collections.abc import Sequence
from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core._words import a_or_an
from ftrain.core.compile._errors import describe
from ftrain.core.errors import TraceError

__all__ = [
    "refuse_differentiated",
    "refuse_hidden",
    "refuse_leaked",
    "refuse_sparse",
    "without_parameters",
]

# Types whose references are not part of an output: code, and the namespaces in which it runs.
_OPAQUE = (type, types.ModuleType, types.CodeType)


def refuse_hidden(output: Any, function: str) -> None:
    """Raise `TypeError` if an output object holds a traced tensor that is not a leaf of the output tree.

    Args:
        output: the function's result.
        function: its name in the message.
    """
    leaves, treedef = tree.flatten(output)
    for i, leaf in enumerate(leaves):
        found = None if isinstance(leaf, torch.Tensor) else _traced_inside(leaf)
        if found is not None:
            path = tree.paths(output)[i]
            raise TypeError(
                f"`{function}` returned {a_or_an(type(leaf).__name__)} at {path or 'the root'} that "
                f"holds a tensor, {describe(found)}: expected tensors in dicts, lists, tuples, "
                "dataclasses, mappings or other tree nodes, since a compiled function cannot fill in "
                "the values of tensors elsewhere. Return the tensors themselves, or register the class "
                "with ftrain.tree.register_dataclass."
            )
    found = _traced_inside(treedef)
    if found is not None:
        raise TypeError(
            f"`{function}` returned a tree with a tensor, {describe(found)}, in a dict key or in the "
            "static data of a node. Return tensors as leaves."
        )


def refuse_sparse(output: Any, function: str) -> None:
    """Raise `TypeError` if an output is a sparse tensor.

    Args:
        output: the result of the function.
        function: the function's name in the message.
    """
    for path, leaf in zip(tree.paths(output), tree.leaves(output), strict=True):
        if isinstance(leaf, torch.Tensor) and leaf.layout != torch.strided:
            raise TypeError(
                f"`{function}` returned a sparse tensor at {path or 'the root'}: expected strided "
                f"tensors, got {leaf.layout}. Create the layer with sparse=False if this is the "
                "gradient of an nn.Embedding or nn.EmbeddingBag, or return x.to_dense()."
            )


def refuse_leaked(captured: Sequence[torch.Tensor], function: str) -> None:
    """Raise `TraceError` if a function reads a tensor that an earlier trace made."""
    for tensor in captured:
        if _is_traced(tensor):
            raise TraceError(
                f"`{function}` reads a tensor ({describe(tensor)}) that was made while another function "
                "was traced and has no values: that function stored it in an attribute, a global or a "
                "container. Return the tensor as an output, and pass it in as an argument."
            )


def refuse_differentiated(captured: Sequence[torch.Tensor], function: str) -> None:
    """Raise `RuntimeError` if the caller differentiates by a tensor that a function captures."""
    if torch.is_grad_enabled():
        for tensor in without_parameters(captured):
            if tensor.requires_grad:
                raise RuntimeError(
                    f"`{function}` captures a tensor that requires a gradient, {describe(tensor)}, and "
                    "a compiled program is opaque to autograd. Differentiate inside the function that "
                    "is compiled (ftrain.value_and_grad, torch.func), or capture x.detach()."
                )
    for tensor in captured:
        if _torch.is_dual(tensor):
            raise RuntimeError(
                f"`{function}` captures a tensor with a tangent of torch.autograd.forward_ad, "
                f"{describe(tensor)}, which a compiled program would drop. Differentiate inside the "
                "function that is compiled: compile(jvp(f)), not jvp(compile(f))."
            )


def without_parameters(captured: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the captured tensors except `nn.Parameter`s, which are constants of a program."""
    return [x for x in captured if not issubclass(type(x), torch.nn.Parameter)]


def _is_traced(value: Any) -> bool:
    return isinstance(value, _torch.FakeTensor) or (
        isinstance(value, torch.Tensor) and _torch.is_wrapped(value)
    )


def _traced_inside(root: Any) -> torch.Tensor | None:
    """Return a traced tensor that is reachable from an object; `None` if there is none."""
    # References prevent the reuse of ids during the search.
    seen: dict[int, Any] = {}
    stack = [root]
    while stack:
        value = stack.pop()
        if id(value) in seen or isinstance(value, _OPAQUE):
            continue
        seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            if _is_traced(value):
                return value
            continue
        if isinstance(value, types.FunctionType):  # its globals are not searched
            stack += [value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__]
        elif not isinstance(value, types.FrameType):
            stack += gc.get_referents(value)
    return None
