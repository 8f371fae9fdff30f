"""Tensors of a module by name, and copies of its structure without tensors.

Read next: `_skeleton.py`, which installs a state's tensors in such a copy.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ftrain.core import _torch
from ftrain.core._graph_leaves import unknown_leaves
from ftrain.core._reachable_objects import reach, spell
from ftrain.core._torch_scripted import is_scripted
from ftrain.core._torch_tensors import storage_id

Tensors = dict[str, torch.Tensor]


def read_tensors(module: nn.Module) -> tuple[Tensors, Tensors]:
    """Return a module's own tensors as `(params, buffers)`, sorted by name, detached, not copied."""
    tensors = named_tensors(module)
    trainable = {
        name for name, t in tensors.items() if isinstance(t, nn.Parameter) and t.requires_grad
    }
    detached = {name: tensors[name].detach() for name in sorted(tensors)}
    return (
        {name: t for name, t in detached.items() if name in trainable},
        {name: t for name, t in detached.items() if name not in trainable},
    )


def fill(
    module: nn.Module, tensors: Tensors, views: Iterable[tuple[torch.Tensor, Any]] = ()
) -> None:
    """Set each parameter and buffer of a module to a copy of the tensor `tensors[name]`.

    The dtype and the device of `tensors` replace those of the module.

    Args:
        module: the module.
        tensors: the new values.
        views: tensors in the module that are views of its parameters and buffers, each with its `Alias`.
    """
    named = named_tensors(module)
    for name, own in named.items():
        own.data = tensors[name].detach().clone()
    for view, alias in views:
        own = named[alias.name]
        own.data = alias.base(own.detach())
        view.data = alias.of(own.detach())


def built_again(factory: Callable[[], nn.Module]) -> nn.Module:
    """Build the model a second time, on the meta device if possible, to find shared objects."""
    try:
        with torch.device("meta"):
            return factory()
    except Exception:  # the model cannot be built on the meta device
        return build(factory)


def is_shared(built: nn.Module, again: nn.Module) -> bool:
    """Return True if two results of a model function share a module, parameter or buffer."""
    mine = {id(x) for x in (*built.modules(), *built.parameters(), *built.buffers())}
    return any(id(x) in mine for x in (*again.modules(), *again.parameters(), *again.buffers()))


def build(factory: Callable[[], nn.Module]) -> nn.Module:
    """Return the module that a model function builds."""
    if not callable(factory):
        raise TypeError(
            "model: expected an nn.Module or a function that builds one, got "
            f"{type(factory).__name__}. Pass Net(...) or lambda: Net(...)."
        )
    module = factory()
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"the model function: expected to return an nn.Module, got {type(module).__name__}. "
            "Write: make_steps(lambda: Net(...), ...)."
        )
    refuse_lazy(module)
    refuse_scripted(module)
    return module


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a module, whose submodules may be nested to any depth.

    Results of an earlier forward pass that the module keeps with their graph (`self.features = h`, the
    weight of a pruned layer) have no copy in torch. Their copies are leaves that require a gradient:
    if a loss reads one before the forward pass replaces it, the step raises.
    """
    memo = {} if memo is None else memo
    for _, tensor in reach([("", module)]).tensors:
        if not tensor.is_leaf and id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone().requires_grad_()
    copy_of = module
    # Children are copied first, so that deepcopy finds them in its memo and recurses only one module
    # deep.
    for m in reversed(list(module.modules())):
        copy_of = copy.deepcopy(m, memo)
    return copy_of


def copy_structure(module: nn.Module, others: Mapping[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a module with all tensors on the meta device, where they need no memory.

    Args:
        module: the module.
        others: copies of other objects in it, by `id`.
    """
    memo = {id(t): hollow(t) for t in named_tensors(module).values()} | dict(others or {})
    try:
        return copied(module, memo)
    except Exception as error:
        error.add_note(
            f"while copying the structure of {type(module).__name__}. If it holds something that "
            "cannot be copied, pass a function that builds it: make_steps(lambda: Net(...), ...)."
        )
        raise


def hollow(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
    empty.__dict__.update(tensor.__dict__)
    return empty


def named_tensors(module: nn.Module) -> Tensors:
    """Return every distinct parameter and buffer under its first name."""
    found: Tensors = dict(module.named_parameters())
    seen = {id(t) for t in found.values()}
    found.update((name, b) for name, b in module.named_buffers() if id(b) not in seen)
    return found


def refuse_overlap(tensors: Tensors) -> None:
    """Raise if two tensors share memory, since a state stores each as an independent tensor."""
    spans = sorted(
        (_memory(t), t.storage_offset() * t.element_size(), t.nbytes, name)
        for name, t in tensors.items()
        if not t.is_meta and t.numel() and t.is_contiguous()
    )
    for (storage, start, size, name), (other, begin, _, second) in itertools.pairwise(spans):
        if storage == other and begin < start + size:
            raise ValueError(
                f"{name!r} and {second!r}: expected tensors in separate memory, got overlapping views. "
                "Register one of them and compute the other from it, or use one object in both places."
            )


def _memory(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's storage; for a fake tensor, which has none, the storage's id."""
    is_traced = isinstance(tensor, _torch.FakeTensor)
    return storage_id(tensor) if is_traced else tensor.untyped_storage().data_ptr()


def refuse_lazy(module: nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{name!r} of {type(module).__name__} is lazy: its shape is not known yet. Run one "
                "batch through the model before passing it on, or use the layer that is not lazy."
            )


def refuse_inputs(module: nn.Module, inputs: Sequence[torch.Tensor], attributes: bool) -> None:
    """Raise if a module holds a tensor that depends on an input of a gradient in progress.

    The tensors of a state have no graph, so the gradient would not flow through that tensor.

    Args:
        module: a module whose tensors become the state's.
        inputs: the tensors with respect to which gradients are being computed.
        attributes: True if tensors in plain attributes are copied as well.
    """
    if not inputs:
        return
    own = [*module.parameters()]
    known = {id(x) for x in inputs}
    reached = ((spell(path), t) for path, t in reach([("", module)]).tensors)
    for path, t in reached if attributes else module.named_buffers():
        if isinstance(t, nn.Parameter) or not t.requires_grad:
            continue
        if not known.isdisjoint(map(id, (t, *unknown_leaves([t], own)))):
            raise ValueError(
                f"bind: the model holds the tensor {path!r}, computed from an argument of the function "
                "that is being differentiated: expected tensors without such a graph, because a "
                "gradient does not flow through a model's own tensors. Pass it to the model's forward "
                "as an argument, or set it to x.detach()."
            )


def refuse_scripted(module: nn.Module) -> None:
    """Raise if TorchScript holds the tensors of a submodule, so that they cannot be replaced."""
    for name, m in module.named_modules():
        if is_scripted(m) and named_tensors(m):
            raise TypeError(
                f"{name or 'model'}: expected a module written in Python, got a {type(m).__name__}. "
                "TorchScript holds its tensors itself, so they cannot be part of a state. Use the "
                "module that it was scripted or traced from; ftrain.compile compiles the whole step."
            )
