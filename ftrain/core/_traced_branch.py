"""Branch recorded as one operator of a traced graph, whose derivative is a branch operator too.

Read next: `_traced_derivative.py`, which computes the derivative of one branch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ftrain.core._strides import dense
from ftrain.core._torch_levels import is_transformed
from ftrain.core._torch_operators import cond_operator
from ftrain.core._traced_derivative import Flat, differentiable, vjp
from ftrain.core.compile._body import BodyGraph, distinct

__all__ = ["traced_branch"]


def traced_branch(
    predicate: torch.Tensor, sides: Sequence[Flat], operands: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Run `sides[0](*operands)` if the predicate holds, `sides[1](*operands)` otherwise.

    Both return tensors of the same shapes and dtypes, and may be called several times.

    Args:
        predicate: bool, 0-d.
    """
    operands = [dense(x) for x in operands]
    grad = torch.is_grad_enabled()
    graded = [grad and x.requires_grad for x in operands]
    graphs = [BodyGraph.trace(side, operands, graded) for side in sides]
    captured = _union(graph.captured for graph in graphs)
    for graph in graphs:
        graph.take(captured)
    returned = [any(each) for each in zip(*(graph.graded for graph in graphs), strict=True)]
    followed = distinct(t for graph in graphs for t in graph.followed)
    modules = [graph.module for graph in graphs]
    return differentiable(
        _Branch(
            predicate, list(sides), list(operands), modules, captured, followed, graded, returned
        )
    )


@dataclasses.dataclass(frozen=True)
class _Branch:
    """Operator of a branch between two traced functions; its derivative is another `_Branch`."""

    predicate: torch.Tensor
    sides: list[Flat]
    operands: list[torch.Tensor]
    modules: list[fx.GraphModule]
    captured: list[torch.Tensor]
    followed: list[torch.Tensor]
    by: list[bool]
    graded: list[bool]

    @property
    def inputs(self) -> list[torch.Tensor]:
        return [*self.operands, *self.followed]

    def run(self) -> list[torch.Tensor]:
        taken, left = self.modules
        operands = [*self.operands, *self.captured]
        return cond_operator(self.predicate, taken, left, operands)

    def saved(self, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return self.operands

    def pull(
        self, saved: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        operands = saved
        n = len(operands)

        def back(side: Flat) -> Flat:
            def fn(*inputs: torch.Tensor) -> list[torch.Tensor]:
                given = iter(inputs[n:])
                cotangent = [None if d is None else next(given) for d in cotangents]
                derivatives = vjp(side, inputs[:n], self.by, self.followed, cotangent)
                return [
                    torch.zeros_like(x) if d is None else d
                    for x, d in zip(by, derivatives, strict=True)
                ]

            return fn

        by = [x for x, is_graded in zip(operands, self.by, strict=True) if is_graded]
        by += self.followed
        sides = [back(side) for side in self.sides]
        inputs = [*operands, *(d for d in cotangents if d is not None)]
        if is_transformed():  # in a backward pass under torch.vmap or in forward mode
            pairs = zip(*(side(*inputs) for side in sides), strict=True)
            derivatives = [torch.where(self.predicate, taken, left) for taken, left in pairs]
        else:
            derivatives = traced_branch(self.predicate, sides, inputs)
        gradients = iter(derivatives)
        return [
            *(next(gradients) if is_graded else None for is_graded in self.by),
            *gradients,
        ]


def _union(lists: Any) -> list[torch.Tensor]:
    return list({id(t): t for each in lists for t in each}.values())
