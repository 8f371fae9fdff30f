"""Loop recorded as one operator of a traced graph, whose derivative is a loop in reverse order.

Read next: `_traced_derivative.py`, which computes the derivative of one iteration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from ftrain.core._strides import contiguous
from ftrain.core._torch_levels import is_transformed
from ftrain.core._torch_operators import scan_operator
from ftrain.core._traced_derivative import Flat, differentiable, vjp
from ftrain.core.compile._body import BodyGraph

__all__ = ["traced_loop"]


def traced_loop(
    body: Flat, carry: Sequence[torch.Tensor], xs: Sequence[torch.Tensor], n: int
) -> list[torch.Tensor]:
    """Run `[*carry, *y] = body(*carry, *x)` n times; return the last carry and the stacked ys.

    `body` is called once for each trace of it, and must compute the same function each time.
    """
    carry = [contiguous(x) for x in carry]
    grad = torch.is_grad_enabled()
    graded = [grad and x.requires_grad for x in (*carry, *xs)]
    # The operator needs at least one carry and one tensor to iterate over, so placeholders are added.
    # Inductor fails for a loop with one output (2.13), because its pattern matcher confuses a list of
    # one node with the node.
    idle = [torch.zeros((), dtype=torch.int8)] if len(carry) < 2 else []
    over = [*xs] or [torch.zeros(n, dtype=torch.int8)]
    first = len(idle) + len(carry)
    differentiated = any(graded)
    while True:
        called = _with_carry(body, len(carry)) if differentiated else body
        graph = _trace(called, [*idle, *carry], over, len(idle), graded)
        # A carry that initially requires no gradient may require one after an iteration, because of
        # captured tensors.
        grown = [a or b for a, b in zip(graded, graph.graded[len(idle) :], strict=False)]
        grown[len(carry) :] = graded[len(carry) :]
        if grown == graded and differentiated == any((*graded, *graph.graded)):
            break
        graded, differentiated = grown, True
    stays = graph.drop_unused(range(first + 1, first + len(over)))
    over = [x for x, stay in zip(over, [True, *stays], strict=True) if stay]
    outputs = differentiable(_Loop(body, list(carry), list(xs), n, graph, graded, idle, over))
    return outputs[: len(outputs) - len(carry)] if differentiated else outputs


def _trace(
    body: Flat,
    carry: Sequence[torch.Tensor],
    xs: Sequence[torch.Tensor],
    n_idle: int,
    graded: Sequence[bool],
) -> BodyGraph:
    def fn(*inputs: torch.Tensor) -> list[torch.Tensor]:
        return [*inputs[:n_idle], *body(*inputs[n_idle : n_idle + len(graded)])]

    inputs = [*carry, *(x[0] for x in xs)]
    return BodyGraph.trace(fn, inputs, [*[False] * n_idle, *graded])


def _with_carry(body: Flat, n: int) -> Flat:
    """Wrap the body to return its input carry as well, which the derivative of the loop needs."""

    def fn(*inputs: torch.Tensor) -> list[torch.Tensor]:
        return [*body(*inputs), *inputs[:n]]

    return fn


@dataclasses.dataclass(frozen=True)
class _Loop:
    """Operator of a loop over a traced body; its derivative is another `_Loop`, in reverse order.

    Attributes:
        by: a bool for each carry and then for each of xs, True if the loop is differentiated with
            respect to it.
        idle: placeholder carries for the operator, if the loop has too few.
        over: the xs that the body reads, or a placeholder of the same length if there are none.
    """

    body: Flat
    carry: list[torch.Tensor]
    xs: list[torch.Tensor]
    n: int
    graph: BodyGraph
    by: list[bool]
    idle: list[torch.Tensor]
    over: list[torch.Tensor]

    @property
    def inputs(self) -> list[torch.Tensor]:
        return [*self.carry, *self.xs, *self.graph.followed]

    @property
    def graded(self) -> list[bool]:
        return self.graph.graded[len(self.idle) :]

    def run(self) -> list[torch.Tensor]:
        start = [*self.idle, *self.carry]
        captured = self.graph.captured
        outputs = scan_operator(self.graph.module, start, self.over, captured)
        return outputs[len(self.idle) :]

    def saved(self, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [*self.xs, *outputs[len(outputs) - len(self.carry) :]]

    def pull(
        self, saved: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        xs, carries = _split(saved, [len(self.xs), len(self.carry)])
        n, followed = len(self.carry), self.graph.followed
        by_carry, by_xs = self.by[:n], self.by[n:]
        # Sums start at -0.0, because adding 0.0 would change the sign of a zero. Torch's addition of
        # complex numbers changes the signs of some zeros, whatever they are added to (torch 2.13).
        sums = [torch.full_like(t, -0.0) for t in followed]
        last = [
            torch.zeros_like(x) if d is None else d
            for x, d, by in zip(self.carry, cotangents, by_carry, strict=False)
            if by
        ]
        rows = [d for d in cotangents[n:] if d is not None]
        sizes = [len(last), len(sums), n, len(xs), len(rows)]

        def back(*inputs: torch.Tensor) -> list[torch.Tensor]:
            d_carry, total, c, x, d_ys = _split(inputs, sizes)
            after, ys = iter(d_carry), iter(d_ys)
            given = [next(after) if by else None for by in by_carry]
            given += [None if d is None else next(ys) for d in cotangents[n:]]
            found = vjp(_with_carry(self.body, n), [*c, *x], self.by, followed, given)
            inner = [x for x, by in zip((*c, *x), self.by, strict=True) if by]
            d_inputs = [
                torch.zeros_like(x) if d is None else d for x, d in zip(inner, found, strict=False)
            ]
            d_followed = found[len(inner) :]
            total = [t if d is None else t + d for t, d in zip(total, d_followed, strict=True)]
            return [*d_inputs[: len(last)], *total, *d_inputs[len(last) :]]

        run = _unrolled if is_transformed() else traced_loop
        reverse = [x.flip(0) for x in (*carries, *xs, *rows)]
        d_first, sums, d_xs = _split(
            run(back, [*last, *sums], reverse, self.n), [len(last), len(sums), sum(by_xs)]
        )
        firsts, slices = iter(d_first), iter(d_xs)
        return [
            *(next(firsts) if by else None for by in by_carry),
            *(next(slices).flip(0) if by else None for by in by_xs),
            *sums,
        ]


def _unrolled(
    body: Flat, carry: Sequence[torch.Tensor], xs: Sequence[torch.Tensor], n: int
) -> list[torch.Tensor]:
    """Run the loop in Python, for a backward pass under `torch.vmap` or in forward mode."""
    now, ys = list(carry), []
    for i in range(n):
        now, y = _split(body(*now, *(x[i] for x in xs)), [len(now), None])
        ys.append(y)
    return [*now, *(torch.stack(column) for column in zip(*ys, strict=True))]


def _split(
    tensors: Sequence[torch.Tensor], sizes: Sequence[int | None]
) -> list[list[torch.Tensor]]:
    """Cut a sequence into lists of these sizes; the last size may be `None`, for the remainder."""
    parts, start = [], 0
    for size in sizes:
        end = len(tensors) if size is None else start + size
        parts.append(list(tensors[start:end]))
        start = end
    return parts
