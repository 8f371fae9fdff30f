"""Autograd dependencies that lead out of a function: what its results can be differentiated by.

`value_and_grad` keeps the graph of its results only if something outside of the function can be
differentiated by: a tensor that the function was given or captures, directly or through operations. Read
next: `_pull_back.py`, which asks.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch

__all__ = ["depends_outside", "innermost", "requires_grad_outside", "unknown_leaves"]

Edge = tuple[Any, int]  # a node of an autograd graph and one of its outputs


def depends_outside(
    tensors: Iterable[torch.Tensor], inputs: Sequence[torch.Tensor], start: int
) -> bool:
    """Return True if a caller could differentiate `tensors` by something other than `inputs`.

    The graph of `tensors` then leads to a node made before `start`, or to a leaf that Python code still
    references. A leaf that the function made (`x.clone().requires_grad_()`) and dropped does not count.

    Args:
        tensors: results of a function.
        inputs: the leaves that it was called with.
        start: the sequence number of its first node; 0 if it is unknown.
    """
    known = {id(leaf) for leaf in inputs}
    seen: set[Any] = set()
    ends: list[Any] = []
    for tensor in tensors:
        node = tensor.grad_fn
        if node is None:
            if tensor.requires_grad and id(tensor) not in known:
                return True  # a captured leaf, returned as it is
        elif node._sequence_nr() < start:
            return True
        else:
            ends.append(node)
    while ends:  # 0.2 µs a node
        for node, _ in ends.pop().next_functions:
            if node is None or node in seen:
                continue
            seen.add(node)
            if not node.next_functions:
                if id(getattr(node, "variable", None)) not in known and _is_held(node):
                    return True
            elif node._sequence_nr() < start:
                return True
            else:
                ends.append(node)
    return False


def unknown_leaves(
    tensors: Iterable[torch.Tensor],
    inputs: Iterable[torch.Tensor],
    *,
    ends: Sequence[torch.Tensor] = (),
    held: bool = False,
) -> list[torch.Tensor]:
    """Return the leaves in which the graph of `tensors` ends, except for `inputs`.

    Args:
        ends: tensors at which a path ends too.
        held: only those that Python code still references.
    """
    known = {id(leaf) for leaf in (*inputs, *ends)}
    last: set[Edge] = {(t.grad_fn, t.output_nr) for t in ends if t.grad_fn is not None}
    seen: set[Any] = set()
    found: list[torch.Tensor] = []
    nodes: list[Any] = []
    for tensor in tensors:
        if tensor.grad_fn is not None:
            if (tensor.grad_fn, tensor.output_nr) not in last:
                nodes.append(tensor.grad_fn)
        elif tensor.requires_grad and id(tensor) not in known:
            found.append(tensor)
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        is_unknown = hasattr(node, "variable") and id(node.variable) not in known
        if is_unknown and (not held or _is_held(node)):
            found.append(node.variable)
        nodes += [edge[0] for edge in node.next_functions if edge not in last]
    return found


def requires_grad_outside(tensor: torch.Tensor) -> bool:
    """Return True if autograd, or any transform of torch.func around the caller, tracks `tensor`."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if tensor.requires_grad:
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def innermost(tensor: torch.Tensor) -> torch.Tensor:
    """Return the plain tensor inside the wrappers of torch.func's transforms."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _is_held(node: Any) -> bool:
    return hasattr(node, "variable") and _references(node) > _unheld()


def _references(node: Any) -> int:
    return sys.getrefcount(node.variable)


@functools.cache
def _unheld() -> int:
    """The number of references to a leaf that only a graph holds."""
    with torch.inference_mode(False), torch.enable_grad():
        result = torch.ones((), requires_grad=True) * 1.0
    assert result.grad_fn is not None
    return _references(result.grad_fn.next_functions[0][0])
