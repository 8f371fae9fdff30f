"""Implementation of `cond` and `switch`: call the one of several functions that a tensor selects.

Eager code reads the tensor and calls the chosen function. A trace records an operator that calls it.
Under `torch.vmap` each row may choose another function, so all are called, and `torch.where` selects
each row's output, as in JAX.

Read next: `_traced_branch.py`, the operator that a trace records.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ftrain.core import _torch, tree
from ftrain.core._gated import Gated
from ftrain.core._graph_leaves import innermost
from ftrain.core._loop_bodies import Pure, check_tensors
from ftrain.core._new_memory import copied
from ftrain.core._strides import contiguous
from ftrain.core._torch_levels import is_batched, is_transformed, running_trace
from ftrain.core._torch_wrapper import plain
from ftrain.core._traced_branch import traced_branch
from ftrain.core._words import kind
from ftrain.core.compile._trace import is_tracing
from ftrain.core.random._key_stream import Scope
from ftrain.core.random.keyed import scoped

__all__ = ["choose"]

Side = Callable[..., Any]


def choose(
    function: str, number: torch.Tensor | int, sides: Sequence[Side], operands: tuple[Any, ...]
) -> Any:
    """Return `sides[number](*operands)` as contiguous tensors in new memory.

    Args:
        function: "cond" or "switch"; used in messages, and part of the site of random draws in a branch.
        number: bool or integer, 0-d, in the range of `sides`; a Python number is constant in a trace.
        sides: functions that return trees of the same structure, shapes and dtypes.
        operands: trees of tensors.
    """
    given = check_tensors(function, "operands", operands)
    with scoped(function) as scope:
        called = _Sides(function, sides, operands, scope)
        if not isinstance(number, torch.Tensor):
            return called.copied(int(number))
        if is_batched(number) or (is_tracing() and is_transformed()):
            return called.all_of(number)
        if is_tracing() or isinstance(number, _torch.FakeTensor):
            return called.traced(number, given)
        try:
            chosen = int(innermost(number))
        except RuntimeError:
            if running_trace() is None:
                raise
            return called.all_of(number)  # traces of torch's (torch.func.linearize) read no values
        return called.copied(chosen)


class _Sides:
    def __init__(
        self, function: str, sides: Sequence[Side], operands: tuple[Any, ...], scope: Scope
    ) -> None:
        self.function = function
        self.sides = sides
        self.operands = operands
        self.scope = scope
        self.first: tuple[int, Any] | None = None

    def one(self, i: int, operands: tuple[Any, ...] | None = None) -> Any:
        """Call branch `i`; its random draws do not depend on those of the other branches."""
        given = self.operands if operands is None else operands
        names = [f"operands[{n}]" for n in range(len(given))]
        with self.scope(i):
            output = Pure(self.function, self.sides[i], names)(*given)
        check_tensors(self.function, f"the output of {self._name(i)}", output)
        return tree.map(contiguous, output)

    def copied(self, i: int) -> Any:
        """Call branch `i`; return its output in new memory."""
        return copied(lambda: self.one(i))

    def all_of(self, number: torch.Tensor) -> Any:
        """Call all branches, and select the output of the chosen one with `torch.where`."""
        picked: Any = None
        for i in range(len(self.sides)):
            is_taken = number == i
            with Gated(is_taken):
                output = self.one(i)
            self._check_same(i, output)
            if i == 0:
                picked = tree.map(torch.clone, output)
            else:
                pick = functools.partial(torch.where, is_taken)
                picked = tree.map(pick, output, picked)
        return picked

    def traced(self, number: torch.Tensor, given: list[torch.Tensor]) -> Any:
        """Record a conditional operator in the trace, or nested ones for more than two branches."""
        _, operands_def = tree.flatten(self.operands)
        found: dict[str, Any] = {}

        def between(low: int, high: int) -> Callable[..., list[torch.Tensor]]:
            def run(*leaves: torch.Tensor) -> list[torch.Tensor]:
                if high - low == 1:
                    output = tree.map(plain, self.one(low, tree.unflatten(operands_def, leaves)))
                    self._check_same(low, output)
                    flat, found["treedef"] = tree.flatten(output)
                    return flat
                middle = (low + high) // 2
                later = number if number.dtype == torch.bool else number >= middle
                return traced_branch(later, [between(middle, high), between(low, middle)], leaves)

            return run

        flat = between(0, len(self.sides))(*map(plain, given))
        return tree.unflatten(found["treedef"], flat)

    def _check_same(self, i: int, output: Any) -> None:
        if self.first is None:
            self.first = i, output
            return
        (one, expected), (two, output) = sorted(
            [self.first, (i, output)], key=lambda side: side[0], reverse=self.function == "cond"
        )
        names = f"{self._name(one)} and {self._name(two)}"
        difference = tree.first_difference(output, expected)
        if difference is not None:
            raise ValueError(
                f"{self.function}: the outputs of {names} differ in structure, {difference}. "
                "Return the same structure from both."
            )
        pairs = zip(tree.leaves(expected), tree.leaves(output), strict=True)
        for path, (a, b) in zip(tree.paths(expected), pairs, strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                raise ValueError(
                    f"{self.function}: expected {names} to return the same shape and dtype at "
                    f"{path or 'the root'}, got {kind(a)} and {kind(b)}. Convert one of them with "
                    ".to(dtype) or .expand(shape)."
                )

    def _name(self, i: int) -> str:
        if self.function == "cond":
            return ("false_fn", "true_fn")[i]
        return f"branches[{i}]"
