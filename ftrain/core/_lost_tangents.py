"""Errors for user-defined functions and operators whose forward-mode tangents torch would drop.

Torch turns forward mode off while it runs the `jvp` of an autograd function, so the derivative of a
tangent is taken as zero (2.13). A custom operator has no rule for forward mode at all, and torch treats
its result as a constant (2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.core import _torch
from ftrain.core import _torch_pytree as torch_pytree
from ftrain.core._torch_dispatch import CUSTOM_FUNCTION_CALL, OpOverload, OpOverloadPacket
from ftrain.core._torch_levels import tangent_levels
from ftrain.core._user_line import current_line

__all__ = ["refuse_second_tangents", "with_tangents"]

# Namespaces whose operators have rules for forward mode, or results without a derivative.
_OURS = frozenset({"aten", "prims", "prim", "ftrain"})


def refuse_second_tangents(func: Callable[..., Any], args: Sequence[Any]) -> None:
    """Raise if `func` calls an autograd function with tangents of two nested forward derivatives.

    Raises:
        NotImplementedError: the arguments have tangents of several levels of torch.func.jvp.
    """
    if func is not CUSTOM_FUNCTION_CALL or not _torch.is_forward_mode_nested():
        return
    function, *operands = args
    if len(_levels(operands)) > 1:
        raise NotImplementedError(
            f"the autograd function {function.__name__} has no second derivative in forward mode: torch "
            f"runs its jvp with forward mode off, here:\n\n{current_line()}\n\nTake one of the "
            "derivatives in reverse mode, with ftrain.value_and_grad or torch.func.grad (for "
            "torch.func.jacfwd(torch.func.jacfwd(f)) write torch.func.hessian(f))."
        )


def with_tangents(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call a torch function; raise if it is a custom operator whose result has lost its tangents.

    Raises:
        NotImplementedError: an argument has a tangent, and no result has one.
    """
    output = func(*args, **kwargs)
    if not isinstance(func, (OpOverload, OpOverloadPacket)) or not _torch.is_forward_mode():
        return output
    name = str(func).removesuffix(".default").replace(".", "::", 1)
    if name.partition("::")[0] in _OURS:
        return output
    results = [x for x in torch_pytree.tree_leaves(output) if _is_differentiable(x)]
    if results and _levels((args, kwargs)) - _levels(results):
        raise NotImplementedError(
            f"the custom operator {name} has no derivative in forward mode: torch treats its result as "
            f"a constant, here:\n\n{current_line()}\n\nTake the derivative in reverse mode, with "
            "ftrain.value_and_grad or torch.func.grad, or call the operator in the forward of a "
            "torch.autograd.Function that has a jvp staticmethod."
        )
    return output


def _levels(value: Any) -> set[int]:
    tensors = filter(_is_differentiable, torch_pytree.tree_leaves(value))
    return set().union(*map(tangent_levels, tensors))


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
