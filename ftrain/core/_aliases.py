"""Tensors in a module that are views of a parameter or buffer: `self.flat = self.weight.data.view(-1)`.

In torch, they follow every update. A state stores each parameter and buffer as an independent tensor,
so that each call makes these views anew.

Read next: `_skeleton.py`, which installs them together with the tensors of a state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ftrain.core import _torch
from ftrain.core._kept_buffers import Lost
from ftrain.core._reachable_objects import reach, spell
from ftrain.core._structure import named_tensors
from ftrain.core._torch_tensors import storage_id
from ftrain.core.compile._trace import is_tracing

__all__ = ["Alias", "add_views", "aliases_of", "refuse_graphs"]


class Alias(NamedTuple):
    """Tensor in a module that is a view of one of the module's parameters or buffers.

    Attributes:
        path: its place in the module.
        name: the name of the parameter or buffer.
        base_stride: the strides of that parameter or buffer.
        size: the shape of the view.
        stride: its strides.
        offset: the number of the base's elements before it in memory.
        requires_grad: a gradient flows through it.
    """

    path: str
    name: str
    base_stride: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    requires_grad: bool

    def base(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return `tensor` if it has the strides of the base, otherwise a copy that has them.

        Rows of stacked states are contiguous, whatever the strides in the module are. A trace gets a
        copy in any case: a view of an argument would contain where the argument begins in its storage.
        """
        sizes = zip(tensor.shape, tensor.stride(), self.base_stride, strict=True)
        if all(size == 1 or own == wanted for size, own, wanted in sizes):
            return tensor.clone() if is_tracing() else tensor
        order = sorted(range(tensor.ndim), key=lambda i: self.base_stride[i], reverse=True)
        places = [order.index(i) for i in range(tensor.ndim)]
        return tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(places)

    def of(self, base: torch.Tensor) -> torch.Tensor:
        """Return the same view of the tensor `base`, which may begin anywhere in its storage.

        A row of a stacked tensor, or a slice of a flat one, begins behind others in one storage.
        """
        base = base if self.requires_grad else base.detach()
        return base.as_strided(self.size, self.stride, base.storage_offset() + self.offset)


def aliases_of(module: nn.Module) -> list[tuple[torch.Tensor, Alias]]:
    """Return the tensors in a module that are views of its parameters and buffers.

    Raises:
        ValueError: a tensor or an array shares memory with a parameter, but is not a view of it.
    """
    named = named_tensors(module)
    bases: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in named.items():
        if _has_storage(tensor):
            bases.setdefault(storage_id(tensor), []).append((name, tensor))
    found = reach([("", module)])
    own = {id(tensor) for tensor in named.values()}
    aliases = []
    for path, tensor in found.tensors:
        if id(tensor) not in own and _has_storage(tensor) and storage_id(tensor) in bases:
            sharing = bases[storage_id(tensor)]
            fitting = [name for name, base in sharing if _is_view(tensor, base)]
            if fitting:
                aliases.append((tensor, _alias(tensor, spell(path), fitting[0], named)))
            elif any(base.requires_grad for _, base in sharing):
                raise _shares(spell(path), next(n for n, base in sharing if base.requires_grad))
    for array in found.buffers:
        if isinstance(array, np.ndarray):
            _refuse_array(array, spell(found.paths.get(id(array))), named)
    return aliases


def refuse_graphs(views: Iterable[tuple[torch.Tensor, Alias]]) -> None:
    """Raise if a view passes gradients to a parameter, because a view in a copy would not.

    Raises:
        ValueError: one of the views is a result of operators on a parameter.
    """
    for view, alias in views:
        if alias.requires_grad and not view.is_leaf:
            raise ValueError(
                f"`{alias.path}` is a view of the parameter {alias.name!r} that passes gradients to it: "
                "expected a model without such views, because in a copy of the model the view would "
                "pass none. Compute it in forward, or pass a function that builds the model."
            )


def add_views(
    tensors: dict[str, torch.Tensor], aliases: Mapping[str, Alias], buffers: Collection[str]
) -> None:
    """Add the views of a module's parameters and buffers to the tensors that will be installed in it."""
    for name, alias in aliases.items():
        if isinstance(tensors[alias.name], Lost):
            tensors[name] = tensors[alias.name]
            continue
        base = alias.base(tensors[alias.name])
        if alias.name in buffers:  # a module may write to a buffer through a view of it
            tensors[alias.name] = base
        tensors[name] = alias.of(base)


def _alias(tensor: torch.Tensor, path: str, name: str, named: dict[str, torch.Tensor]) -> Alias:
    base = named[name]
    offset = int(tensor.storage_offset()) - int(base.storage_offset())
    size, stride = tuple(tensor.shape), tuple(tensor.stride())
    return Alias(path, name, tuple(base.stride()), size, stride, offset, tensor.requires_grad)


def _has_storage(tensor: torch.Tensor) -> bool:
    if tensor.layout != torch.strided or _torch.is_wrapped(tensor) or not tensor.numel():
        return False
    with contextlib.suppress(RuntimeError, NotImplementedError):
        return storage_id(tensor) != 0
    return False


def _is_view(tensor: torch.Tensor, base: torch.Tensor) -> bool:
    """Return True if `tensor` is a view of `base` that can be made again from a copy of `base`.

    A copy must have the strides of `base`. The two tensors are known to share a storage.
    """
    if tensor.dtype != base.dtype or base.is_conj() != tensor.is_conj():
        return False
    if torch.empty_like(base, device="meta").stride() != base.stride():
        return False
    first, last = (_last(x) - x.storage_offset() for x in (tensor, base))
    start = tensor.storage_offset() - base.storage_offset()
    return start >= 0 and start + first <= last


def _last(x: torch.Tensor) -> int:
    """Return the position of a tensor's last element in its storage."""
    steps = ((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return int(x.storage_offset()) + sum(steps)


def _refuse_array(array: np.ndarray[Any, Any], path: str, named: dict[str, torch.Tensor]) -> None:
    address = array.__array_interface__["data"][0]
    for name, tensor in named.items():
        if tensor.requires_grad and tensor.device.type == "cpu" and _has_storage(tensor):
            storage = tensor.untyped_storage()
            if 0 <= address - storage.data_ptr() < max(storage.nbytes(), 1):
                raise _shares(path, name)


def _shares(path: str, name: str) -> ValueError:
    return ValueError(
        f"`{path}` shares memory with the parameter {name!r}: expected memory of its own, because a "
        "state stores each parameter by itself, and this would keep the first values. "
        "Compute it from the parameter in forward, or copy it: x.clone()."
    )
