"""Blocking of gradients through `cond` branches that a row of `torch.vmap` did not take.

Read next: `_choose.py`, which calls all branches under `torch.vmap`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ftrain.core import _torch
from ftrain.core import _torch_pytree as torch_pytree
from ftrain.core._graph_leaves import requires_grad_outside
from ftrain.core._torch_levels import at_depth, level_of, place, recorded, running_trace

__all__ = ["Gated", "behind_gates", "gated_arguments"]


# Functions of autograd that need the very tensor whose derivative they compute: torch.func.grad calls
# `requires_grad_` on its argument, and an inner gradient wraps that argument, which no mode sees.
_OF_AUTOGRAD = frozenset({torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward})


class Gated(TorchFunctionMode):
    """Function mode that stops gradients from an untaken branch to tensors made outside of the branches.

    The gradient of the output of any other branch is 0. Backward functions may compute NaN from that (0
    times the infinite slope of a square root at 0); the mode replaces such gradients by 0, as if the
    branch had not been called.
    """

    def __init__(self, is_taken: torch.Tensor) -> None:
        super().__init__()
        self.is_taken = is_taken
        self.is_open = False  # True: all tensors pass
        self.depth, _ = place()
        # By the id of the outer tensor and the trace: a loop in the branch has a trace of its own.
        self.gates: dict[tuple[int, Any], tuple[torch.Tensor, torch.Tensor]] = {}
        # Tensors made inside; references keep their ids unique.
        self.own: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if self.is_open or place()[0] < self.depth:
            return func(*args, **(kwargs or {}))
        if func is torch.Tensor.requires_grad_:
            self.gates.pop((id(args[0]), running_trace()), None)  # it has no path to the tensor
            return func(*args, **(kwargs or {}))
        if func not in _OF_AUTOGRAD:
            args = torch_pytree.tree_map_only(torch.Tensor, self.gated, tuple(args))
            kwargs = torch_pytree.tree_map_only(torch.Tensor, self.gated, kwargs)
        output = func(*args, **(kwargs or {}))
        for leaf in torch_pytree.tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self.own[id(leaf)] = leaf
        return output

    def gated(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of equal values that passes gradients only if the branch is taken."""
        if id(tensor) in self.own or not requires_grad_outside(tensor):
            return tensor
        key = id(tensor), running_trace()
        if key not in self.gates:
            # It may be first used under torch.no_grad() in the branch, or in an autograd function there,
            # and outside of that later. Likewise inside of a transform in the branch, whose level ends
            # before the branch does.
            with recorded(), at_depth(max(self.depth, level_of(tensor))):
                gate = torch.where(self.is_taken, tensor, tensor.detach())
            self.gates[key] = tensor, gate
            self.own[id(gate)] = gate
        return self.gates[key][1]


@contextlib.contextmanager
def behind_gates() -> Iterator[None]:
    """Let all tensors pass inside the context, in which the forward of an autograd function runs.

    It runs under other transforms than those around the branch, so that a gate has no meaning there. Its
    arguments have passed through the gates already.
    """
    shut = [
        mode for mode in _torch.function_modes() if isinstance(mode, Gated) and not mode.is_open
    ]
    try:
        for mode in shut:
            mode.is_open = True
        yield
    finally:
        for mode in shut:
            mode.is_open = False


def gated_arguments(args: Sequence[Any]) -> Sequence[Any]:
    """Return an operator's arguments, changed so that untaken `cond` branches give them no gradients.

    For operators that function modes do not see: in a branch, a view of each tensor passes through the
    function mode `Gated`. Outside of branches, the result is `args`.
    """
    if not any(isinstance(mode, Gated) for mode in _torch.function_modes()):
        return args

    def gated(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor) if requires_grad_outside(tensor) else tensor

    found: Sequence[Any] = torch_pytree.tree_map_only(torch.Tensor, gated, tuple(args))
    return found
