"""Private torch APIs that unwrap tensors from the running torch.func transforms and wrap them again.

An operator that runs traced bodies is recorded below the transforms, where mapped dimensions of a tensor
are ordinary ones, and its tangent is a separate tensor. (`torch._C._functorch`,
`torch._functorch.pyfunctorch`: torch 2.0 and later; `temporarily_clear_interpreter_stack`: torch 2.3.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._C import _functorch
from torch._functorch.pyfunctorch import (
    coerce_cinterpreter,
    temporarily_clear_interpreter_stack,
    temporarily_pop_interpreter_stack,
    temporarily_restore_interpreter_stack,
)
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ftrain.core import _torch

__all__ = [
    "above",
    "all_parts",
    "at_depth",
    "below",
    "has_tangents",
    "is_batched",
    "is_transformed",
    "level_of",
    "lift",
    "lower",
    "mapped_dim",
    "moved",
    "n_mapped",
    "place",
    "recorded",
    "running_trace",
    "tangent_levels",
    "vmap_levels",
]

_VMAP = _functorch.TransformType.Vmap
_JVP = _functorch.TransformType.Jvp

#: Context without transforms, which yields the argument with which `above` activates them again inside.
below = temporarily_clear_interpreter_stack
above = temporarily_restore_interpreter_stack


def is_transformed() -> bool:
    """Return True under torch.func transforms and in forward mode, which loop operators do not support.

    In such an operator, a dual tensor would lose its tangent.
    """
    return _torch.inside_functorch() is not None or _torch.is_forward_mode()


def place() -> tuple[int, int]:
    """Return a value that identifies the torch.func transforms and the trace that are running.

    A tensor of an inner transform, or of the body of a traced loop, must not be used outside of it.
    (`get_interpreter_stack`, torch 2.0 and later; `get_proxy_mode`, torch 2.3 and later.)
    """
    return len(_functorch.get_interpreter_stack() or ()), id(get_proxy_mode())


def running_trace() -> Any:
    """Return an object that identifies the trace in progress; `None` if there is none (torch 2.3)."""
    return get_proxy_mode()


@contextlib.contextmanager
def at_depth(depth: int) -> Iterator[None]:
    """Suspend the inner transforms of torch.func in the context; only the outer `depth` ones remain."""
    with contextlib.ExitStack() as left:
        while len(_functorch.get_interpreter_stack() or ()) > depth:
            left.enter_context(temporarily_pop_interpreter_stack())
        yield


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Turn on autograd in reverse and in forward mode inside the context (torch 2.0 and later).

    Torch runs the forward of an autograd function with both turned off.
    """
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def level_of(tensor: torch.Tensor) -> int:
    """Return the level (1 or more) of the transform that wrapped a tensor; negative for a plain one."""
    return int(_functorch.maybe_get_level(tensor))


def n_mapped() -> int:
    """Return the number of running `torch.vmap` transforms."""
    return len(vmap_levels())


def vmap_levels() -> list[int]:
    """Return the levels of the running `torch.vmap` transforms, the outermost first."""
    stack = _functorch.get_interpreter_stack() or ()
    return [each.level() for each in stack if each.key() == _VMAP]


def moved(tensor: torch.Tensor, vmaps: Sequence[int]) -> torch.Tensor | None:
    """Return a tensor without its derivative, in the wrappers of the `torch.vmap`s that run now.

    Torch runs the forward of an autograd function inside of new vmaps, which map over its arguments as
    those around the call do, and below all other transforms.

    Args:
        tensor: a tensor from outside of the forward.
        vmaps: the levels of the vmaps around the call.

    Returns:
        The tensor; `None` if a vmap maps over it, and the running vmaps are not as many as `vmaps`.
    """
    dims: dict[int, int] = {}
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if (dim := mapped_dim(tensor)) is not None:
            dims[level_of(tensor)] = dim
        tensor = _functorch.get_unwrapped(tensor)
    now = vmap_levels()
    if dims and len(now) != len(vmaps):
        return None
    for outer, level in zip(vmaps, now, strict=False):
        if outer in dims:
            tensor = _functorch._add_batch_dim(tensor, dims[outer], level)
    return tensor


def is_batched(tensor: torch.Tensor) -> bool:
    """Return True if a running `torch.vmap` maps over a tensor."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def mapped_dim(tensor: torch.Tensor) -> int | None:
    """Return the dimension over which a vmap maps a wrapped tensor; `None` for other wrappers."""
    if not _functorch.is_batchedtensor(tensor):
        return None
    return int(_functorch.maybe_get_bdim(tensor))


def has_tangents() -> bool:
    """Return True if the caller runs under a `torch.func.jvp`."""
    return any(each.key() == _JVP for each in _functorch.get_interpreter_stack() or ())


def all_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return a tensor, its tangents of all levels, and the tensors inside of their wrappers."""
    stack = _functorch.get_interpreter_stack()
    if not stack:
        unpacked: Any = forward_ad.unpack_dual(tensor) if _torch.is_dual(tensor) else None  # type: ignore[no-untyped-call]
        return [tensor] if unpacked is None else [tensor, unpacked.tangent]
    top, parts = stack[-1], [tensor]
    if top.key() != _VMAP and _is_differentiable(tensor):
        value, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
        if tangent is not None:
            parts = [value, tangent]
    inner = [
        _functorch.get_unwrapped(part) if _functorch.maybe_get_level(part) == top.level() else part
        for part in parts
    ]
    with temporarily_pop_interpreter_stack():
        return [tensor, *parts, *(each for part in inner for each in all_parts(part))]


def tangent_levels(tensor: torch.Tensor) -> set[int]:
    """Return the levels of the forward derivatives whose tangents a tensor has.

    For a `torch.func.jvp` it is its own level, for `torch.autograd.forward_ad` that of the transform in
    which the tensor became dual, or 0.
    """
    stack = _functorch.get_interpreter_stack()
    if not stack:
        return {0} if _torch.is_dual(tensor) else set()
    top, found, parts = stack[-1], set(), [tensor]
    if top.key() != _VMAP and _is_differentiable(tensor):
        value, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
        if tangent is not None:
            found, parts = {top.level()}, [value, tangent]
    parts = [
        _functorch.get_unwrapped(part) if _functorch.maybe_get_level(part) == top.level() else part
        for part in parts
    ]
    with temporarily_pop_interpreter_stack():
        return found.union(*map(tangent_levels, parts))


def lower(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Unwrap a tensor to plain ones: its value and, for each `torch.func.jvp`, the tangents.

    Each of them has the shape `(*sizes of the vmaps, *tensor.shape)`, with the outermost vmap first. A
    tensor over which a vmap does not map is repeated; a missing tangent is zero. Reverse-mode
    differentiation by a transform ends here.
    """
    stack = _functorch.get_interpreter_stack()
    if not stack:
        return [tensor]
    top = stack[-1]
    dim, parts = None, [tensor]
    if top.key() == _JVP and _is_differentiable(tensor):
        value, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
        parts = [value, torch.zeros_like(value) if tangent is None else tangent]
    if top.key() == _VMAP and _functorch.maybe_get_level(tensor) == top.level():
        dim = _functorch.maybe_get_bdim(tensor)
    parts = [
        _functorch.get_unwrapped(part) if _functorch.maybe_get_level(part) == top.level() else part
        for part in parts
    ]
    with temporarily_pop_interpreter_stack():
        if dim is not None:
            parts = [part.movedim(dim, 0) for part in parts]
        elif top.key() == _VMAP:
            size = coerce_cinterpreter(top).batch_size()
            parts = [part.expand(size, *part.shape) for part in parts]
        return [each for part in parts for each in lower(part)]


def lift(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Wrap plain tensors (a value and its tangents) again for the running torch.func transforms."""
    stack = _functorch.get_interpreter_stack()
    if not stack:
        (tensor,) = parts
        return tensor
    top = stack[-1]
    half = len(parts) // 2 if top.key() == _JVP and _is_differentiable(parts[0]) else len(parts)
    with temporarily_pop_interpreter_stack():
        value = lift(parts[:half])
        tangents = [lift(parts[half:])] if half < len(parts) else []
    if top.key() == _VMAP:
        return _functorch._add_batch_dim(value, 0, top.level())
    value = _functorch._wrap_for_grad(value, top.level())
    for tangent in tangents:
        slope = _functorch._wrap_for_grad(tangent, top.level())
        value = forward_ad.make_dual(value, slope)  # type: ignore[no-untyped-call]
    return value


def _is_differentiable(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
