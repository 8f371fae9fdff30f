"""Derivatives of the operators that run traced bodies: loops and branches.

The derivative of such an operator is another operator, whose body calls the Python function again and
differentiates it. Autograd therefore sees every construct of that function (`torch.no_grad`, custom
functions, inner gradients), to any order. Differentiating the traced graph would be wrong: there, an
inner gradient is a chain of operators with `detach`, and custom backward functions are missing.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.autograd.function import BackwardCFunction

from ftrain.core import _torch
from ftrain.core._differentiate import entry
from ftrain.core._graph_leaves import refuse_cuts, survey
from ftrain.core._hooks import without_hooks
from ftrain.core._printing import quiet
from ftrain.core._torch_checkpoint import contexts_now
from ftrain.core._torch_tensors import forward_class
from ftrain.core.compile._trace import tracing
from ftrain.core.errors import TraceError

__all__ = ["Flat", "Operator", "differentiable", "vjp"]

Flat = Callable[..., list[torch.Tensor]]


class Operator(Protocol):
    """Protocol of an operator that runs traced bodies, and of its derivative.

    Attributes:
        inputs: the tensors to differentiate with respect to, including those that its bodies capture.
        graded: a bool for each output, True if it requires a gradient.
    """

    @property
    def inputs(self) -> list[torch.Tensor]: ...
    @property
    def graded(self) -> list[bool]: ...

    def run(self) -> list[torch.Tensor]:
        """Record the operator; return its outputs."""

    def saved(self, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the inputs and outputs that the derivative needs (`pull`)."""

    def pull(
        self, saved: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """Return the gradient with respect to each input, from the cotangents of the outputs."""


def differentiable(operator: Operator) -> list[torch.Tensor]:
    """Run an operator; return its outputs, with autograd tracking those that require a gradient."""
    if not any(operator.graded):
        with torch.no_grad():
            return operator.run()
    return list(_Differentiable.apply(operator, *operator.inputs))  # type: ignore[no-untyped-call]


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: Operator, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = operator.run()
        ctx.operator = operator
        ctx.contexts = contexts_now(), _torch.autocast_now()
        ctx.save_for_backward(*operator.saved(outputs))
        ctx.set_materialize_grads(False)
        pairs = zip(outputs, operator.graded, strict=True)
        ctx.mark_non_differentiable(*(output for output, graded in pairs if not graded))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if all(d is None for d in cotangents):
            return (None,) * (1 + len(ctx.operator.inputs))
        # The bodies run again, but the contexts around their first run (`keyed`, installed tensors of a
        # model, autocast) may have ended, so they are entered again.
        region, autocast = ctx.contexts
        with tracing(), quiet(), region(), autocast():
            return (None, *ctx.operator.pull(ctx.saved_tensors, cotangents))


def vjp(
    fn: Flat,
    inputs: Sequence[torch.Tensor],
    graded: Sequence[bool],
    followed: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor | None],
) -> list[torch.Tensor | None]:
    """Return the gradients of the inputs for which `graded` is True, then of the `followed` tensors.

    Each result is a partial derivative: a captured tensor that was computed from another captured tensor
    outside of `fn` is treated as independent of it.

    Args:
        graded: for each input, True if its gradient is computed.
        followed: captured tensors whose gradients are computed.
        cotangents: for each output, the cotangent, or `None` if there is none.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        entries = [entry(x, keep) if by else x for x, by in zip(inputs, graded, strict=True)]
        outputs = fn(*entries)
        pairs = [
            (output, cotangent)
            for output, cotangent in zip(outputs, cotangents, strict=True)
            if cotangent is not None and output.requires_grad
        ]
        by = [x for x, is_graded in zip(entries, graded, strict=True) if is_graded] + [*followed]
        if not pairs or not by:
            return [None] * len(by)
        found = survey([output for output, _ in pairs], by, ends=by)
        refuse_cuts(found, keep, "the body of a loop or branch")
        # These are only parts of the followed tensors' gradients; hooks must run on their sum.
        with _ending_at(by), without_hooks(followed):
            return list(
                torch.autograd.grad(
                    [output for output, _ in pairs],
                    by,
                    [cotangent for _, cotangent in pairs],
                    # The backward pass also uses the graph of the followed tensors, which must not be
                    # freed.
                    retain_graph=True,
                    create_graph=keep,
                    allow_unused=True,
                )
            )


@contextlib.contextmanager
def _ending_at(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Stop backward passes at `tensors` inside the context."""
    outputs: dict[Any, set[int]] = defaultdict(set)
    for tensor in tensors:
        if tensor.grad_fn is not None:
            outputs[tensor.grad_fn].add(tensor.output_nr)
    hooks = [node.register_prehook(_without(node, numbers)) for node, numbers in outputs.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _without(node: Any, numbers: set[int]) -> Callable[..., Any]:
    """Return a hook that drops a node's incoming gradients at the output positions `numbers`."""

    def hook(grads: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
        left = tuple(None if i in numbers else grad for i, grad in enumerate(grads))
        # Autograd's own nodes accept missing gradients. A custom node would receive zeros instead, from
        # which its backward may compute NaN.
        is_custom = isinstance(node, BackwardCFunction)
        if (
            is_custom
            and forward_class(node) is not _Differentiable
            and not any(grad is not None for grad in left)
        ):
            raise TraceError(
                f"the body of a loop or branch captures both a result of {type(node).__name__}, an "
                "autograd function, and a tensor that the result was computed from: the backward of "
                "the function would receive zeros. Pass the result as an argument: in the carry or xs "
                "of a scan, or as an operand of a branch."
            )
        return left

    return hook
