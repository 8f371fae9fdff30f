"""Private torch APIs: tensor subclasses without memory, which run operators on other tensors.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch

__all__ = [
    "METADATA",
    "Wrapper",
    "flattened",
    "is_mutable",
    "is_pointwise",
    "is_view",
    "plain",
    "plain_functions",
    "replaced",
    "wrap",
    "written",
]


class Wrapper(torch.Tensor):
    """Base class of tensors without memory, whose `__torch_dispatch__` runs all operators.

    Functions of torch give the operators a plain result class (`__torch_function__` is disabled, torch
    1.7 and later).
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def plain(self) -> torch.Tensor:
        """Return an ordinary tensor with the same values."""
        raise NotImplementedError

    def memory(self) -> torch.Tensor:
        """Return the tensor that holds the values of this process; it is read without communication."""
        raise NotImplementedError


def wrap(
    kind: type[Wrapper], shape: Sequence[int], like: torch.Tensor, strides: Sequence[int]
) -> Any:
    """Return an instance of the tensor class `kind`, which has no memory (torch 1.12 and later).

    (`torch.Tensor._make_wrapper_subclass`.)

    Args:
        kind: the class of the new tensor.
        shape: the shape of the new tensor.
        like: a tensor with the same dtype and device.
        strides: the strides of the new tensor.
    """
    make: Any = torch.Tensor._make_wrapper_subclass
    return make(kind, shape, strides=strides, dtype=like.dtype, device=like.device)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a wrapper as a plain tensor; return any other tensor unchanged."""
    return tensor.plain() if isinstance(tensor, Wrapper) else tensor


def flattened(values: Any) -> tuple[list[Any], Any]:
    """Return the leaves, and their structure (of optree), of an operator's arguments or results.

    An operator takes and returns tensors, numbers and the like, and built-in containers of these.
    `torch.utils._pytree` also finds registered classes, but takes 30 µs where optree takes 4.
    """
    leaves, structure = optree.tree_flatten(values, none_is_leaf=True)
    return leaves, structure


def replaced(kind: type[torch.Tensor], fn: Callable[[Any], Any], values: Any) -> Any:
    """Return an operator's arguments or results with `fn(x)` in place of each tensor of class `kind`."""
    leaves, structure = flattened(values)
    return structure.unflatten([fn(x) if isinstance(x, kind) else x for x in leaves])


@functools.cache
def is_pointwise(operator: Any) -> bool:
    """Return True if an operator computes each element from one element of each input (torch 2.1)."""
    tags = operator.tags
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


@functools.cache
def is_mutable(operator: Any) -> bool:
    """Return True if an operator writes to one of its arguments (torch 2.1 and later)."""
    return bool(operator._schema.is_mutable)


def written(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments that an operator writes to (torch 1.13 and later)."""
    found = []
    for place, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[place] if place < len(args) else kwargs.get(argument.name))
    return found


@functools.cache
def is_view(operator: Any) -> bool:
    """Return True if a result of an operator may share memory with an argument (1.13 and later)."""
    return any(result.alias_info is not None for result in operator._schema.returns)


def plain_functions() -> contextlib.AbstractContextManager[Any]:
    """Disable `__torch_function__` of tensor subclasses inside the context (torch 1.13 and later)."""
    return torch._C.DisableTorchFunctionSubclass()


_NAMES = ["device", "dtype", "grad_fn", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_nested"]
_NAMES += ["is_quantized", "is_sparse", "itemsize", "layout", "ndim", "requires_grad", "shape"]

#: Functions that read shape, dtype, device and the like of a tensor, not its values.
METADATA = {getattr(torch.Tensor, name).__get__ for name in _NAMES} | {
    torch.Tensor.__hash__,
    torch.Tensor.__len__,
    torch.Tensor.dim,
    torch.Tensor.element_size,
    torch.Tensor.is_complex,
    torch.Tensor.is_contiguous,
    torch.Tensor.is_floating_point,
    torch.Tensor.nelement,
    torch.Tensor.numel,
    torch.Tensor.size,
    torch.Tensor.stride,
    torch.is_complex,
    torch.is_floating_point,
    torch.numel,
}
