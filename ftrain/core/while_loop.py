"""`while_loop`: a loop with a data-dependent end, in eager, compiled and vmapped code.

Read next: `scan.py`, a loop of fixed length, which supports reverse-mode differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ftrain.core import _torch, tree
from ftrain.core._graph_leaves import innermost, requires_grad_outside
from ftrain.core._loop_bodies import Pure, check_carry, check_tensors
from ftrain.core._new_memory import copied
from ftrain.core._strides import contiguous
from ftrain.core._torch_levels import (
    above,
    below,
    has_tangents,
    is_batched,
    lift,
    lower,
    n_mapped,
    running_trace,
)
from ftrain.core._torch_operators import while_loop_operator
from ftrain.core._words import kind
from ftrain.core.compile._body import BodyGraph
from ftrain.core.compile._trace import is_tracing
from ftrain.core.errors import TraceError
from ftrain.core.random._key_stream import Scope
from ftrain.core.random.keyed import scoped

__all__ = ["while_loop"]

C = TypeVar("C")


def while_loop(cond_fn: Callable[[C], torch.Tensor], body_fn: Callable[[C], C], init: C) -> C:
    """Repeat `carry = body_fn(carry)` while `cond_fn(carry)` is True.

    In compiled code it is one operator of the graph. Under `torch.vmap` it runs until the condition is
    False for all rows; a row that has ended keeps its carry. Random draws in a body have a separate key
    in each iteration.

    Forward-mode differentiation works with torch.func.jvp, and in eager code with
    torch.autograd.forward_ad. Reverse mode would have to store all iterations, whose number is unknown,
    so a gradient raises: use `ftrain.scan` over a fixed number of iterations, with `ftrain.cond` in its
    body.

    Args:
        cond_fn: a pure function of the carry; returns bool, 0-d. Eager code on an accelerator waits for
            it in each iteration.
        body_fn: a pure function of the carry; returns a tree of the same structure, shapes and dtypes.
        init: a tree of tensors; the first carry.

    Returns:
        The last carry (`init` if there was no iteration), as contiguous tensors in new memory.

    Raises:
        TypeError: a leaf is not a tensor; `cond_fn` does not return bool.
        ValueError: the carry changes its structure, shapes or dtypes; `cond_fn` does not return a 0-d
            tensor; the carry requires a gradient; torch.autograd.forward_ad inside `ftrain.compile`.
        ImpureFunctionError: a function writes into the carry or into a tensor of its closure.
        TraceError: a trace of torch's own, such as torch.func.linearize, does not know the condition.

    >>> while_loop(lambda x: x < 100, lambda x: x * 3, torch.tensor(2))
    tensor(162)

    Source: `jax.lax.while_loop`.
    """
    given = check_tensors("while_loop", "init", init)
    _refuse_gradients("init", init)
    with scoped("while_loop condition") as condition, scoped("while_loop") as iteration:
        loop = _Loop(cond_fn, body_fn, condition, iteration)
        if is_tracing() or any(isinstance(innermost(x), _torch.FakeTensor) for x in given):
            result: C = loop.traced(init)
        else:
            result = copied(lambda: loop.eager(init))
        return result


class _Loop:
    def __init__(
        self,
        cond_fn: Callable[[Any], Any],
        body_fn: Callable[[Any], Any],
        condition: Scope,
        iteration: Scope,
    ) -> None:
        self.cond_fn = Pure("while_loop", cond_fn, ["carry"])
        self.body_fn = Pure("while_loop", body_fn, ["carry"])
        self.condition = condition
        self.iteration = iteration

    def goes_on(self, carry: Any, number: int | torch.Tensor) -> torch.Tensor:
        with self.condition(number):
            found = self.cond_fn(carry)
        if not isinstance(found, torch.Tensor) or found.dtype != torch.bool:
            raise TypeError(
                f"while_loop: expected cond_fn to return a bool tensor, got {kind(found)}. Compare it: "
                "x > 0."
            )
        if found.ndim:
            raise ValueError(
                f"while_loop: expected cond_fn to return a 0-d tensor, got {kind(found)}. Reduce it "
                "with .any() or .all()."
            )
        return found

    def next(self, carry: Any, number: int | torch.Tensor) -> Any:
        with self.iteration(number):
            new = self.body_fn(carry)
        check_carry("while_loop", carry, new)
        _refuse_gradients("carry", new)
        return tree.map(contiguous, new)

    def eager(self, init: Any) -> Any:
        carry, number = tree.map(contiguous, init), 0
        while True:
            goes_on = self.goes_on(carry, number)
            try:
                ends = not bool(innermost(goes_on).any())
            except RuntimeError as error:
                if running_trace() is None:
                    raise
                raise TraceError(
                    "while_loop: expected a condition whose value can be read, got one inside "
                    "torch.func.linearize or another trace of torch's. Write torch.func.jvp, which does "
                    "not trace, or ftrain.scan with a fixed number of iterations."
                ) from error
            if ends:
                return carry
            new = self.next(carry, number)
            carry = _where(goes_on, new, carry) if is_batched(goes_on) else new
            number += 1

    def traced(self, init: Any) -> Any:
        """Record the loop as an operator below the torch.func transforms, which lack rules for loops."""
        if _torch.is_forward_mode() and not has_tangents():
            raise ValueError(
                "while_loop: expected no torch.autograd.forward_ad inside ftrain.compile, got a dual "
                "level: the loop would drop the tangents. Use torch.func.jvp."
            )
        flat, treedef = tree.flatten(init)
        device = flat[0].device if flat else None
        groups = [lower(leaf) for leaf in flat]
        with below() as transforms:
            start = [contiguous(part) for group in groups for part in group]

            def carry_of(parts: Sequence[torch.Tensor]) -> Any:
                rest = iter(parts)
                leaves = [lift([next(rest) for _ in group]) for group in groups]
                return tree.unflatten(treedef, leaves)

            def condition(*inputs: torch.Tensor) -> list[torch.Tensor]:
                *parts, number = inputs
                with above(transforms):
                    (rows,) = lower(self.goes_on(carry_of(parts), number))
                return [rows.any()]

            def body(*inputs: torch.Tensor) -> list[torch.Tensor]:
                *parts, number = inputs
                with above(transforms):
                    carry = carry_of(parts)
                    new = self.next(carry, number)
                    if n_mapped():
                        new = _where(self.goes_on(carry, number), new, carry)
                    lowered = [part for x in tree.leaves(new) for part in lower(x)]
                return [*lowered, number + 1]

            start.append(torch.zeros((), dtype=torch.int64, device=device))
            graphs = [BodyGraph.trace(fn, start) for fn in (condition, body)]
            captured = list({id(t): t for graph in graphs for t in graph.captured}.values())
            for graph in graphs:
                graph.take(captured)
            modules = [graph.module for graph in graphs]
            with torch.no_grad():  # carries require no gradient, but captured tensors may
                *last, _ = while_loop_operator(modules[0], modules[1], start, captured)
        return carry_of(last)


def _where(goes_on: torch.Tensor, new: Any, old: Any) -> Any:
    return tree.map(lambda a, b: torch.where(goes_on, a, b), new, old)


def _refuse_gradients(what: str, carry: Any) -> None:
    if not torch.is_grad_enabled():
        return
    for path, leaf in zip(tree.paths(carry), tree.leaves(carry), strict=True):
        if requires_grad_outside(leaf):
            raise ValueError(
                f"while_loop: {what}{path} requires a gradient, and reverse mode needs a fixed number "
                "of iterations. Use ftrain.scan with ftrain.cond in its body, or detach the carry and "
                "what body_fn captures."
            )
