"""Search of an autograd graph for leaves from outside a function, and nodes without a derivative.

`value_and_grad` keeps the graph of its results only if a caller could differentiate them with respect to
a tensor from outside of the function: an argument or a captured tensor, directly or through operations.

Read next: `_differentiate.py`, which uses the result.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import BackwardCFunction

from ftrain.core import _torch
from ftrain.core._python_objects import cell_contents
from ftrain.core._torch_levels import all_parts
from ftrain.core._torch_tensors import forward_class, is_evaluation_node, node_number

__all__ = [
    "Survey",
    "innermost",
    "refuse_cuts",
    "requires_grad_outside",
    "survey",
    "unknown_leaves",
]

Edge = tuple[Any, int]  # a node of an autograd graph, and the number of one of its outputs


class Survey(NamedTuple):
    """Properties of an autograd graph: leaves outside of a function, and operators without a derivative.

    Attributes:
        outside: True if a caller could differentiate with respect to something other than the inputs.
        cuts: nodes of operators without a derivative formula, at which the derivative ends.
        once: nodes of custom functions whose backward is marked `once_differentiable`.
        determinants: nodes of determinants, whose derivative depends on the memory layout of the matrix.
        norms: nodes whose gradient torch computes with a mean, variance or norm as a constant (2.13),
            so that its derivative is wrong: weight normalization, and second derivatives of BatchNorm,
            InstanceNorm and LayerNorm.
    """

    outside: bool = False
    cuts: Sequence[Any] = ()
    once: Sequence[Any] = ()
    determinants: Sequence[Any] = ()
    norms: Sequence[Any] = ()


def survey(
    tensors: Iterable[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    start: int = 0,
    ends: Sequence[torch.Tensor] = (),
) -> Survey:
    """Search the autograd graph of a function's results for outside leaves and missing derivatives.

    The graph leads outside if it leads to a node made before `start`, or to a leaf that Python code
    still references. A leaf that the function made (`x.clone().requires_grad_()`) and dropped does not
    count. Takes 0.3 µs per node.

    Args:
        tensors: results of a function.
        inputs: the leaves that the function was called with.
        start: the sequence number of the function's first node; 0 if it is unknown.
        ends: tensors at which the search ends.
    """
    known = {id(leaf) for leaf in inputs}
    seen: set[Any] = {tensor.grad_fn for tensor in ends}
    nodes: list[Any] = []
    found = Survey(cuts=[], once=[], determinants=[], norms=[])
    outside = False
    for tensor in tensors:
        node = tensor.grad_fn
        if node is None:
            # A captured leaf that is returned unchanged.
            outside = outside or (tensor.requires_grad and id(tensor) not in known)
        elif node not in seen:
            nodes.append(node)
    while nodes:
        node = nodes.pop()
        following = node.next_functions
        if type(node) not in _ORDINARY:
            _sort(node, found)
        if not following:
            if not outside and id(getattr(node, "variable", None)) not in known:
                outside = _is_held(node)
        elif node_number(node) < start:
            outside = True
            continue
        for after, _ in following:
            if after is not None and after not in seen:
                seen.add(after)
                nodes.append(after)
    return found._replace(outside=outside)


def refuse_cuts(found: Survey, twice: bool, what: str) -> None:
    """Raise if an operator in the graph has no derivative or, if `twice`, no second derivative."""
    if found.cuts:
        raise ValueError(
            f"{what} depends on an operator that has no derivative{_named(found.cuts[0])}: the gradient "
            "through it would be zero. Register a derivative with torch.library.register_autograd, or "
            "detach the operator's input."
        )
    if twice and found.once:
        raise ValueError(
            f"the gradient of {what} is differentiated once more, but {type(found.once[0]).__name__} "
            "belongs to an autograd function whose backward is marked @once_differentiable: its second "
            "derivative would count as zero. Write that backward with differentiable operations and "
            "without the mark, or take this gradient under torch.no_grad()."
        )
    if twice and found.norms:
        name = type(found.norms[0]).__name__
        raise ValueError(
            f"the gradient of {what} is differentiated once more, but torch computes the "
            f"{_WRONG[name]} incorrectly. Compute the normalization with x.mean(), x.var() and "
            "x.norm(), or take this gradient under torch.no_grad()."
        )


def _named(node: Any) -> str:
    """Return ` (name)` for an operator without a derivative, and an empty string for any other node.

    The name stands in the warning that the node would show.
    """
    with warnings.catch_warnings(record=True) as caught, contextlib.suppress(Exception):
        warnings.simplefilter("always")
        node(torch.zeros(()))
    text = str(caught[0].message) if caught else ""
    return f" ({text.partition(': ')[0]})" if "autograd kernel" in text else ""


_WRONG = {
    "BatchNormBackwardBackward0": "third derivative of BatchNorm",
    "CudnnBatchNormBackwardBackward0": "third derivative of CudnnBatchNorm",
    "MiopenBatchNormBackwardBackward0": "third derivative of MiopenBatchNorm",
    "NativeBatchNormBackwardBackward0": "third derivative of NativeBatchNorm",
    "NativeLayerNormBackwardBackward0": "third derivative of NativeLayerNorm",
    "WeightNormInterfaceBackward0": "second derivative of weight_norm",
}
_ORDINARY: set[type] = set()  # autograd's own node classes found so far that need no check
_ONCE = torch.autograd.function.once_differentiable(lambda ctx: None).__code__


def _sort(node: Any, found: Any) -> None:
    kind: Any = type(node)
    if issubclass(kind, BackwardCFunction):
        if _is_once(forward_class(kind)):
            found.once.append(node)
    elif node.name() in ("torch::autograd::WarnNotImplemented", "torch::autograd::Error"):
        found.cuts.append(node)
    elif kind.__name__ in ("LinalgDetBackward0", "LinalgSlogdetBackward0"):
        found.determinants.append(node)
    elif kind.__name__ in _WRONG:
        if not is_evaluation_node(node):  # BatchNorm in eval mode is linear and has no such error
            found.norms.append(node)
    elif kind.__name__ != "CppFunction":  # the common class of all nodes without their own class
        _ORDINARY.add(kind)


def _is_once(function: Any) -> bool:
    """Return True if the backward of an autograd function is marked `once_differentiable`.

    torch.func wraps a function in others, which have it in their closures. A backward that reads
    attributes of its own class has this class in its closure too.
    """
    seen, functions = set(), [function]
    while functions:
        backward = functions.pop().backward
        if backward in seen:
            continue
        seen.add(backward)
        if getattr(backward, "__code__", None) is _ONCE:
            return True
        held = map(cell_contents, getattr(backward, "__closure__", None) or ())
        functions += [
            each
            for each in held
            if isinstance(each, type) and issubclass(each, torch.autograd.Function)
        ]
    return False


def unknown_leaves(
    tensors: Iterable[torch.Tensor],
    inputs: Iterable[torch.Tensor],
    *,
    ends: Sequence[torch.Tensor] = (),
    held: bool = False,
) -> list[torch.Tensor]:
    """Return the autograd leaves that `tensors` depend on, except for `inputs`.

    Args:
        tensors: results of a function.
        inputs: the leaves that the function was called with.
        ends: further tensors at which the search ends.
        held: True to return only leaves that Python code still references.
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
    """Return True if autograd, or any transform of torch.func around the caller, tracks `tensor`.

    A tensor is tracked if its tangent is: a gradient may be taken by the direction of a derivative.
    """
    # Function modes see attributes too: the gate of a branch would replace an inner tensor, which has
    # no meaning at the current level, and hide that it is tracked.
    with _torch.unwatched():
        if _torch.is_forward_mode():
            return any(part.requires_grad for part in all_parts(tensor))
        while not tensor.requires_grad and _torch.is_wrapped(tensor):
            tensor = _torch.unwrapped(tensor)
        return tensor.requires_grad


def any_requires_grad_outside(leaves: Sequence[Any]) -> bool:
    """Return True if autograd, or any transform of torch.func around the caller, tracks one of `leaves`.

    For plain tensors outside of transforms, this only reads `requires_grad`.
    """
    with _torch.unwatched():
        is_plain = _torch.inside_functorch() is None and not _torch.is_forward_mode()
        if is_plain and all(type(leaf) is torch.Tensor for leaf in leaves):
            return any(leaf.requires_grad for leaf in leaves)
    return any(isinstance(leaf, torch.Tensor) and requires_grad_outside(leaf) for leaf in leaves)


def innermost(tensor: torch.Tensor) -> torch.Tensor:
    """Return the plain tensor inside the wrappers of torch.func's transforms."""
    while _torch.is_wrapped(tensor):
        tensor = _torch.unwrapped(tensor)
    return tensor


def _is_held(node: Any) -> bool:
    return hasattr(node, "variable") and _references(node) > _UNHELD


def _references(node: Any) -> int:
    return sys.getrefcount(node.variable)


def _count_unheld() -> int:
    """Return the reference count of a leaf tensor that nothing but an autograd graph refers to."""
    with torch.inference_mode(False), torch.enable_grad():
        result = torch.ones((), requires_grad=True) * 1.0
    assert result.grad_fn is not None
    return _references(result.grad_fn.next_functions[0][0])


# Computed at import, because a function mode around a later call may keep references to the tensors.
_UNHELD = _count_unheld()
