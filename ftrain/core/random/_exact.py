"""Samples that take their bits from an operator and their derivatives from a formula.

An operator draws the same bits in eager, compiled and vmapped code, but has no derivative; a formula of
torch operations has derivatives of every order, but its last bits depend on the machine, and on whether
it was fused. `exact` combines the two wherever a derivative can be asked for.

Read next: `sample.py`, whose `uniform` is the simplest use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ftrain.core import _torch, _torch_levels


def exact(value: Tensor, formula: Callable[[], Tensor], *parameters: Tensor) -> Tensor:
    """Return `value` with the derivatives of a formula in the parameters.

    Args:
        value: the sample.
        formula: returns a tensor of the shape and dtype of `value`. Not called where no derivative can
            be asked for, which saves time and, on CUDA, launches. In a trace it is always called: a
            compiler drops what is not used.
        parameters: all tensors through which the formula has a derivative.
    """
    if not _is_followed(parameters):
        return value
    return _follow(value, formula())


def _is_followed(parameters: Sequence[Tensor]) -> bool:
    """Return False only if no derivative with respect to the parameters can be asked for."""
    if torch.compiler.is_dynamo_compiling() or _torch_levels.running_trace() is not None:
        return True
    # `requires_grad` is False under `torch.func.jvp` and in a `vmap` inside a gradient.
    if _torch_levels.is_transformed():
        return True
    return torch.is_grad_enabled() and any(p.requires_grad for p in parameters)


def _follow(value: Tensor, formula: Tensor) -> Tensor:
    # Dynamo cannot trace a function with a `jvp`, and torch takes no derivative of a `jvp` in forward
    # mode: it drops the tangent of the tangent without an error (2.13).
    if torch.compiler.is_dynamo_compiling() or _torch.is_forward_mode_nested():
        change = formula.detach() - formula  # NaN where the formula is infinite
        return value.detach() - torch.where(change.isnan(), 0.0, change)  # -0.0 - 0.0 is -0.0
    sample: Tensor = _Exact.apply(value.detach(), formula)  # type: ignore[no-untyped-call]
    return sample


class _Exact(torch.autograd.Function):
    """Autograd function that returns its first argument with the derivatives of its second."""

    @staticmethod
    def forward(value: Tensor, formula: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save nothing, because the derivative is the identity."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, grad

    @staticmethod
    def jvp(ctx: Any, value: None, formula: Tensor) -> Tensor:
        return formula.clone()

    @staticmethod
    def vmap(info: Any, dims: Any, value: Tensor, formula: Tensor) -> Any:
        rows = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((value, formula), dims, strict=True)
        ]
        return _Exact.apply(*rows), 0  # type: ignore[no-untyped-call]
