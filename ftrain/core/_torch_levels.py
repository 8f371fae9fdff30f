"""Private torch APIs that take tensors out of the transforms of torch.func that run, and back in.

An operator that runs traced bodies is recorded below the transforms, where a tensor has its mapped
dimensions as ordinary ones. (`torch._C._functorch`, `torch._functorch.pyfunctorch`: 2.0 and later;
`temporarily_clear_interpreter_stack`: 2.3.)
"""

from __future__ import annotations

import torch
from torch._C import _functorch
from torch._functorch.pyfunctorch import (
    coerce_cinterpreter,
    temporarily_clear_interpreter_stack,
    temporarily_pop_interpreter_stack,
    temporarily_restore_interpreter_stack,
)

__all__ = ["above", "below", "is_batched", "lift", "lower", "mapped_dim", "n_mapped"]

_VMAP = _functorch.TransformType.Vmap

#: A context without transforms; it yields what `above` needs to run them again inside.
below = temporarily_clear_interpreter_stack
above = temporarily_restore_interpreter_stack


def n_mapped() -> int:
    """Return the number of `torch.vmap` transforms that are running."""
    return sum(each.key() == _VMAP for each in _functorch.get_interpreter_stack() or ())


def is_batched(tensor: torch.Tensor) -> bool:
    """Return True if a `torch.vmap` that is running maps over a tensor."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def mapped_dim(tensor: torch.Tensor) -> int | None:
    """Return the dimension that a vmap maps over, of the tensor inside; `None` for another wrapper."""
    if not _functorch.is_batchedtensor(tensor):
        return None
    return int(_functorch.maybe_get_bdim(tensor))


def lower(tensor: torch.Tensor) -> torch.Tensor:
    """Return the plain tensor inside, of shape `(*sizes of the vmaps, *tensor.shape)`, outermost first.

    A vmap that does not map over it repeats it. What a transform differentiates by is cut off.
    """
    stack = _functorch.get_interpreter_stack()
    if not stack:
        return tensor
    top = stack[-1]
    dim, is_vmap = None, top.key() == _VMAP
    if _functorch.maybe_get_level(tensor) == top.level():
        if is_vmap:
            dim = _functorch.maybe_get_bdim(tensor)
        tensor = _functorch.get_unwrapped(tensor)
    with temporarily_pop_interpreter_stack():
        if dim is not None:
            tensor = tensor.movedim(dim, 0)
        elif is_vmap:
            tensor = tensor.expand(coerce_cinterpreter(top).batch_size(), *tensor.shape)
        return lower(tensor)


def lift(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor of which `lower` gives this one."""
    stack = _functorch.get_interpreter_stack()
    if not stack:
        return tensor
    top = stack[-1]
    with temporarily_pop_interpreter_stack():
        tensor = lift(tensor)
    if top.key() == _VMAP:
        return _functorch._add_batch_dim(tensor, 0, top.level())
    return _functorch._wrap_for_grad(tensor, top.level())
