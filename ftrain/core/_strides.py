"""Strides of a newly allocated tensor, for dimensions of size 1 and empty tensors too."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["contiguous", "contiguous_strides", "dense"]


def contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor, copied if necessary, with the strides of a newly allocated tensor of its shape.

    `x.contiguous()` keeps any stride of a dimension of size 1, and all strides of an empty tensor: those
    of `x[:1].T` and of `x.expand(1)`. The operators of loops and branches compare the strides of carries
    and of branches exactly.

    >>> column = torch.zeros(3, 5)[:1].T
    >>> column.contiguous().stride(), contiguous(column).stride()
    ((1, 5), (1, 1))
    """
    tensor = tensor.contiguous()
    shape = tensor.shape
    # These two tests take 0.2 µs, the strides a multiple of that.
    if (1 not in shape and 0 not in shape) or tensor.stride() == contiguous_strides(shape):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` if it has the strides that `torch.empty_like` gives, else a contiguous copy.

    An expanded or sliced tensor is copied. So is a fake one with other strides in dimensions of size 1
    than a new tensor has, since there `empty_like` and `clone` of a fake tensor differ (torch 2.13).

    >>> rows = torch.zeros(3, 5)
    >>> dense(rows.T).stride(), dense(rows[:, ::2].T).stride()
    ((1, 5), (3, 1))
    """
    if torch.empty_like(tensor).stride() == tensor.stride():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a new tensor of this shape.

    >>> contiguous_strides((3, 1, 2))
    (2, 2, 1)
    """
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
