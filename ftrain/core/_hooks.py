"""Tensor hooks (`Tensor.register_hook`) of parameters, run on the tensors that replace the parameters.

Autograd calls a tensor's hooks on the gradient of this tensor. But ftrain differentiates with respect to
substitutes of the given tensors, and calls a module with the state's tensors in place of its parameters,
so the hooks must be registered on these tensors. Each hook runs once for each gradient, on the total
gradient, as it would on the tensor itself.

Read next: `_differentiate.py`, which takes the gradients.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from ftrain.core import _torch, _torch_levels
from ftrain.core._graph_leaves import requires_grad_outside
from ftrain.core._torch_tensors import gradient_hooks, has_accumulation_hooks
from ftrain.core.compile._trace import is_tracing

__all__ = ["Gradient", "Hooks", "hooked", "note_call", "parameter_hooks", "without_hooks"]

Hook = Callable[[torch.Tensor], torch.Tensor | None]
Hooks = Mapping[str, tuple[Hook, ...]]

_KNOWN = "_ftrain_hooks"  # attribute of a substitute: the hooks that were registered on it


class Restorable(Protocol):
    """Protocol of a model whose state is restored after a backward pass."""

    def restored(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that restores, when it ends, the model's state at its start."""


class _Active(threading.local):
    def __init__(self) -> None:
        self.gradients: list[Gradient] = []


_active = _Active()


class Gradient:
    """Gradient computation in progress, from the call of the function to the end of the backward pass.

    Hooks registered on the inputs of the function are removed at the end. Later backward passes continue
    to the tensors that the inputs replace, and run the hooks of those tensors.

    Attributes:
        models: the models that the function has called.
    """

    def __init__(self) -> None:
        self.models: list[Restorable] = []
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._by_id: dict[int, torch.Tensor] | None = None  # filled only if there are hooks
        self._handles: list[Any] = []

    def __enter__(self) -> Gradient:
        _active.gradients.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _active.gradients.pop()
        for handle in self._handles:
            handle.remove()

    def begin(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Record pairs `(input, original)`; the function gets `input` in place of `original`."""
        self._pairs, self._by_id = list(pairs), None

    def outer_inputs(self) -> list[torch.Tensor]:
        """Return the inputs of the gradient computations around this one."""
        return [x for outer in _active.gradients if outer is not self for x, _ in outer._pairs]

    def copy_hooks(self) -> None:
        """Register each original tensor's hooks on the function input that replaces the original."""
        with _torch.unwatched():
            found = [(x, hooks) for x, leaf in self._pairs if (hooks := _hooks_of(leaf))]
        for x, hooks in found:
            self.register(x, hooks)

    def given_for(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the original tensor that the function input `x` replaces; `None` if there is none."""
        if self._by_id is None:
            self._by_id = {id(each): leaf for each, leaf in self._pairs}
        return self._by_id.get(id(x))

    def backward(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context for the backward pass that restores the models when it ends."""
        stack = contextlib.ExitStack()
        for model in self.models:
            stack.enter_context(model.restored())
        return stack

    def register(self, x: torch.Tensor, hooks: Sequence[Hook]) -> torch.Tensor | None:
        """Register the missing `hooks` on the function input `x`; return the tensor that `x` replaces.

        Returns `None`, and registers nothing, if `x` is not an input.
        """
        leaf = self.given_for(x)
        if leaf is not None and (new := _missing(x, hooks, until=leaf)):
            self._handles += _register(x, new, until=leaf)
            x.__dict__[_KNOWN] = [*x.__dict__.get(_KNOWN, ()), *new]
            if all(each.given_for(leaf) is None for each in _active.gradients):
                _run_later(leaf, x, _missing(leaf, new))
        return leaf


def inputs_in_progress() -> list[torch.Tensor]:
    """Return the inputs of all gradient computations in progress in this thread."""
    return [x for gradient in _active.gradients for x, _ in gradient._pairs]


def note_call(model: Restorable) -> None:
    """Record a call of a model in each gradient computation in progress.

    The computation restores the model after its backward pass, which may run code of the model again.
    """
    for gradient in _active.gradients:
        if model not in gradient.models:
            gradient.models.append(model)


def parameter_hooks(module: nn.Module) -> Hooks:
    """Return the current hooks of a module's trainable parameters, by name.

    Raises:
        ValueError: a parameter has a hook that runs after its gradient is accumulated.
    """
    found = {}
    for name, parameter in module.named_parameters():
        if has_accumulation_hooks(parameter):
            raise ValueError(
                f"the parameter {name!r} has a hook of register_post_accumulate_grad_hook: expected "
                "none, since no gradient is accumulated in a parameter. Change gradients in the "
                "optimizer (ftrain.optim.chain), or with register_hook."
            )
        hooks = gradient_hooks(parameter)
        if hooks and parameter.requires_grad:
            found[name] = tuple(hooks.values())
    return MappingProxyType(found)


def hooked(params: dict[str, torch.Tensor], hooks: Hooks) -> dict[str, torch.Tensor]:
    """Return `params` such that calling the module with them runs the hooks of its parameters.

    If a tensor is an input of a gradient computation in progress, the hooks are registered on it, in the
    first of several calls. Any other tensor is replaced by an alias with the hooks.

    Args:
        params: the tensors that take the places of the parameters.
        hooks: the hooks of the parameters, by name.
    """
    if not hooks or not torch.is_grad_enabled():
        return params
    return {**params, **{name: _with(params[name], each) for name, each in hooks.items()}}


def _with(tensor: torch.Tensor, hooks: Sequence[Hook]) -> torch.Tensor:
    x = tensor
    for gradient in reversed(_active.gradients):
        leaf = gradient.register(x, hooks)
        x = x if leaf is None else leaf
    new = _missing(tensor, hooks)
    if not new or not requires_grad_outside(tensor):
        return tensor
    alias = tensor.view_as(tensor)
    _run_later(tensor, alias, new)
    return alias


def _register(tensor: torch.Tensor, hooks: Sequence[Hook], until: torch.Tensor) -> list[Any]:
    """Register hooks on a tensor and on the tensors that it wraps under torch.func; return the handles.

    Args:
        tensor: the tensor.
        hooks: the hooks.
        until: a wrapped tensor; no hook is registered on this tensor or on one inside it.
    """
    handles: list[Any] = []
    while tensor is not until:
        if tensor.requires_grad:
            handles += [_add(tensor, hook) for hook in hooks]
        if not _torch.is_wrapped(tensor):
            break
        hooks, tensor = _inside(tensor, hooks), _torch.unwrapped(tensor)
    return handles


def _run_later(tensor: torch.Tensor, alias: torch.Tensor, hooks: Sequence[Hook]) -> None:
    """Register hooks on the total gradient of `tensor`, run only if `alias` contributed to the gradient.

    Hooks on the alias itself would receive only the part of the gradient that comes through the alias.

    Args:
        tensor: the tensor.
        alias: the tensor that replaces `tensor` in a call of a model or function.
        hooks: the hooks.
    """
    while hooks:
        if tensor.requires_grad and alias.requires_grad:
            _add(alias, _Arrival(_total(tensor, hooks)))
        if not _torch.is_wrapped(tensor):
            return
        hooks, tensor = _inside(tensor, hooks), _torch.unwrapped(tensor)
        alias = _torch.unwrapped(alias)


def _add(tensor: torch.Tensor, hook: Hook) -> Any:
    return tensor.register_hook(hook)  # type: ignore[no-untyped-call]  # torch leaves it untyped


class _Total:
    """Hook on a caller's tensor that runs other hooks if a gradient came through an alias of the tensor.

    The hook is removed with the last graph that uses an alias. In the body of a loop, the graph is made
    again in each backward pass and freed before the gradient arrives, so there the hook is kept.

    Attributes:
        hooks: the hooks.
        arrived: True if a gradient has come through an alias.
        aliases: the number of aliases.
    """

    def __init__(self, tensor: torch.Tensor, hooks: Sequence[Hook]) -> None:
        self.hooks, self.arrived, self.aliases = hooks, False, int(is_tracing())
        self.handle = _add(tensor, self)

    def __call__(self, grad: torch.Tensor) -> torch.Tensor:
        if self.arrived:
            self.arrived = False
            for hook in self.hooks:
                changed = hook(grad)
                grad = grad if changed is None else changed
        return grad


def _total(tensor: torch.Tensor, hooks: Sequence[Hook]) -> _Total:
    """Return the hook that runs `hooks` on a tensor's total gradient; register it if it is missing."""
    registered = gradient_hooks(tensor)
    wanted = [*map(_OfRows.plain, hooks)]
    for each in registered.values() if registered else ():
        if isinstance(each, _Total) and [*map(_OfRows.plain, each.hooks)] == wanted:
            return each
    return _Total(tensor, hooks)


class _Arrival:
    """Hook on an alias that records that a gradient has passed through the alias."""

    def __init__(self, total: _Total) -> None:
        self._total = total
        total.aliases += 1

    def __call__(self, grad: torch.Tensor) -> None:
        self._total.arrived = True

    def __del__(self) -> None:
        self._total.aliases -= 1
        if not self._total.aliases:
            self._total.handle.remove()


class _OfRows:
    """Hook that applies another hook to each row of a gradient batched by `torch.vmap`."""

    def __init__(self, hook: Hook, dim: int) -> None:
        self._hook, self._dim = hook, dim

    @staticmethod
    def plain(hook: Hook) -> Hook:
        """Return the hook that a per-row hook applies to each row; return any other hook unchanged."""
        while isinstance(hook, _OfRows):
            hook = hook._hook
        return hook

    def __call__(self, grads: torch.Tensor) -> torch.Tensor:
        def row(grad: torch.Tensor) -> torch.Tensor:
            changed = self._hook(grad)
            return grad if changed is None else changed

        rows: torch.Tensor = torch.vmap(row, in_dims=self._dim, out_dims=self._dim)(grads)
        return rows


def _inside(tensor: torch.Tensor, hooks: Sequence[Hook]) -> Sequence[Hook]:
    """Return the hooks to register on the tensor inside a wrapper; under vmap, they run once per row."""
    dim = _torch_levels.mapped_dim(tensor)
    return hooks if dim is None else [_OfRows(hook, dim) for hook in hooks]


def _hooks_of(tensor: torch.Tensor, until: torch.Tensor | None = None) -> list[Hook]:
    """Return the hooks of a tensor and of the tensors that it wraps under torch.func.

    Args:
        tensor: the tensor.
        until: a wrapped tensor; hooks of this tensor and of those inside it are left out.
    """
    found: list[Hook] = []
    while tensor is not until:
        hooks = gradient_hooks(tensor)
        if hooks and tensor.requires_grad:
            here = [_OfRows.plain(hook) for hook in hooks.values() if not isinstance(hook, _Total)]
            found = [*found, *(hook for hook in here if not _holds(found, hook))]
        if not _torch.is_wrapped(tensor):
            break
        tensor = _torch.unwrapped(tensor)
    return found


def _missing(
    tensor: torch.Tensor, hooks: Sequence[Hook], until: torch.Tensor | None = None
) -> list[Hook]:
    """Return the `hooks` that are not yet registered on a tensor or on a tensor that it wraps."""
    has = [*_hooks_of(tensor, until), *getattr(tensor, _KNOWN, ())]
    return [hook for hook in hooks if not _holds(has, hook)]


def _holds(hooks: Sequence[Hook], hook: Hook) -> bool:
    return any(each is hook for each in hooks)


@contextlib.contextmanager
def without_hooks(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Disable the hooks of `tensors` inside the context."""
    registered = [hooks for tensor in tensors if (hooks := gradient_hooks(tensor))]
    kept = [dict(hooks) for hooks in registered]
    for hooks in registered:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, items in zip(registered, kept, strict=True):
            hooks.update(items)
