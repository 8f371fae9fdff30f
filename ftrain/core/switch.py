"""`switch`: one of several functions, chosen by an integer tensor.

Read next: `cond.py`, the choice between two functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ftrain.core._choose import choose
from ftrain.core._words import a_or_an, kind

__all__ = ["switch"]

T = TypeVar("T")


def switch(index: torch.Tensor | int, branches: Sequence[Callable[..., T]], *operands: Any) -> T:
    """Call one of several functions, `branches[index](*operands)`, with the index clamped to the range.

    In compiled code, only the selected function runs. Under `torch.vmap` with an index for each row, all
    functions are computed and the rows selected. Random draws of each function have separate keys. It is
    differentiable in forward and reverse mode, to any order.

    Args:
        index: integer, 0-d, clamped to the range of `branches`, as in JAX. Eager and compiled code on an
            accelerator wait for it.
        branches: one or more pure functions, which return trees of tensors of the same structure, shapes
            and dtypes. Eager code cannot check this, since it calls only one of them.
        operands: trees of tensors, the arguments of all functions.

    Returns:
        The result of the function, as contiguous tensors in new memory.

    Raises:
        TypeError: the index is not an integer; an operand or a result has a leaf that is not a tensor.
        ValueError: the index is not 0-d; `branches` is empty; two results differ in structure, shape or
            dtype.
        ImpureFunctionError: a function writes into an operand or into a tensor of its closure.

    >>> branches = [torch.sin, torch.cos, lambda x: x * 2]
    >>> switch(torch.tensor(2), branches, torch.tensor(5.0))
    tensor(10.)

    Source: `jax.lax.switch`.
    """
    branches = list(branches)
    if not branches:
        raise ValueError(
            "switch: expected at least one branch, got 0. Pass one branch for each index."
        )
    if not isinstance(index, torch.Tensor):
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(
                f"switch: expected index to be an integer or a 0-d integer tensor, got "
                f"{a_or_an(type(index).__name__)}. Use ftrain.cond for a choice by a bool."
            )
        index = min(max(index, 0), len(branches) - 1)
    elif index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(
            f"switch: expected index to be an integer tensor, got {kind(index)}. Use ftrain.cond for a "
            "choice by a bool, and .long() for a float."
        )
    elif index.ndim:
        raise ValueError(
            f"switch: expected index to be 0-d, got {kind(index)}. Map over rows with torch.vmap."
        )
    else:
        index = index.clamp(0, len(branches) - 1)
    result: T = choose("switch", index, branches, operands)
    return result
