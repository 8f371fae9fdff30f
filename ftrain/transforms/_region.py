"""Rematerialization of functions that compute gradients: the backward pass runs the functions again.

`ftrain.remat` recomputes the tensors that autograd saved in a region. If a gradient is taken inside the
region, it would recompute them in the forward pass already, once for each gradient. A region of this
file keeps its inputs only, and its backward pass runs the region again and differentiates that run.

Read next: `unroll.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core._graph_leaves import refuse_cuts, survey, unknown_leaves
from ftrain.core._recomputation import start_recomputation
from ftrain.core._torch_dispatch import TRACED_TENSORS

__all__ = ["refuse_captured", "region"]


def region(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn` with less memory: only its inputs are saved, and the backward pass calls it again.

    Outside of grad mode, under torch.func transforms and in forward mode, it calls `fn` directly.
    """

    def call(*args: Any) -> Any:
        leaves, treedef = tree.flatten(args)
        tracked = any(isinstance(x, torch.Tensor) and x.requires_grad for x in leaves)
        transformed = _torch.inside_functorch() is not None or _torch.is_forward_mode()
        if not torch.is_grad_enabled() or not tracked or transformed:
            return fn(*args)
        found: list[Any] = []

        def run(given: list[Any]) -> list[Any]:
            out, out_def = tree.flatten(fn(*tree.unflatten(treedef, given)))
            found[:] = [out_def]
            return out

        outputs = _Region.apply(run, *leaves)  # type: ignore[no-untyped-call]
        return tree.unflatten(found[0], list(outputs))

    return call


class _Region(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[list[Any]], list[Any]], *leaves: Any) -> tuple[Any, ...]:
        ctx.run, ctx.others = run, [None if isinstance(x, torch.Tensor) else x for x in leaves]
        ctx.save_for_backward(*(x if isinstance(x, torch.Tensor) else None for x in leaves))
        ctx.set_materialize_grads(False)
        # Recorded and forgotten: it shows which outputs have a derivative. The statistics of BatchNorm
        # have none, and its operator refuses those that require a gradient.
        with torch.enable_grad():
            outputs = run(
                [
                    x.detach().requires_grad_(need) if isinstance(x, torch.Tensor) else x
                    for x, need in zip(leaves, ctx.needs_input_grad[1:], strict=True)
                ]
            )
        fixed = [isinstance(x, torch.Tensor) and not x.requires_grad for x in outputs]
        outputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in outputs]
        ctx.mark_non_differentiable(
            *(x for x, is_fixed in zip(outputs, fixed, strict=True) if is_fixed)
        )
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        again = torch.is_grad_enabled()  # the gradients will be differentiated
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        with torch.enable_grad():
            inputs = [
                other if x is None else _input(x, need, again)
                for x, other, need in zip(saved, ctx.others, needed, strict=True)
            ]
            start = _torch.sequence_number()
            outputs = ctx.run(inputs)
            pairs = [
                (out, cotangent)
                for out, cotangent in zip(outputs, cotangents, strict=True)
                if cotangent is not None and out.requires_grad
            ]
            wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
            tracked = [out for out, _ in pairs]
            refuse_captured("unroll", tracked, wanted, inputs)
            refuse_cuts(survey(tracked, wanted, start), again, "unroll: a step")
            grads = iter(
                torch.autograd.grad(
                    tracked,
                    wanted,
                    [cotangent for _, cotangent in pairs],
                    create_graph=again,
                    allow_unused=True,
                )
                if pairs
                else [None] * len(wanted)
            )
        return None, *(next(grads) if need else None for need in needed)


def _input(x: torch.Tensor, need: bool, again: bool) -> torch.Tensor:
    if not need:
        return x.detach()
    x = x.view_as(x) if again else x.detach()
    if isinstance(x, TRACED_TENSORS):
        x = start_recomputation(x, [])  # keeps a compiler from merging the two runs
    return x if again else x.requires_grad_()


def refuse_captured(
    function: str, outputs: list[torch.Tensor], wanted: list[torch.Tensor], inputs: list[Any]
) -> None:
    """Raise if the outputs depend on a tensor that is not an input: its gradient would be lost."""
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    captured = unknown_leaves(outputs, tensors, ends=wanted, held=True)
    if captured:
        shapes = ", ".join(str(tuple(x.shape)) for x in captured)
        remedy = (
            "Put them in state.extras or in the batch (hyper-parameters: optim.with_hyperparams), or "
            "write unroll(train_step, k, remat=False), which keeps the whole graph."
            if function == "unroll"
            else "Pass them as arguments: implicit(condition, solution, *args)."
        )
        raise ValueError(
            f"{function}: expected a function that depends on its arguments only, got captured tensors "
            f"that require gradients (of shapes {shapes}). {remedy}"
        )
