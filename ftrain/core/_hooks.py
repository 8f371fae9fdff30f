"""Hooks on tensors (`Tensor.register_hook`), for tensors that stand in for others.

Autograd calls a tensor's hooks on the gradient that reaches it. ftrain differentiates by aliases of the
tensors that it is given and by the state's tensors in place of a module's parameters, so hooks are
registered on these too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["Hooks", "hooked", "hooks_of", "parameter_hooks", "without_hooks"]

Hook = Callable[[torch.Tensor], torch.Tensor | None]
Hooks = Mapping[str, Sequence[Hook]]


def hooks_of(tensor: torch.Tensor) -> list[Hook]:
    """Return the hooks of a tensor."""
    hooks: Any = tensor._backward_hooks
    return list(hooks.values()) if hooks else []


def parameter_hooks(module: nn.Module) -> Hooks:
    """Return the hooks of a module's parameters, by name.

    Raises:
        ValueError: a parameter has a hook that runs after its gradient is accumulated.
    """
    found = {}
    for name, parameter in module.named_parameters():
        if parameter._post_accumulate_grad_hooks:
            raise ValueError(
                f"the parameter {name!r} has a hook of register_post_accumulate_grad_hook: expected "
                "none, since no gradient is accumulated in a parameter. Change gradients in the "
                "optimizer (ftrain.optim.chain), or with register_hook."
            )
        if hooks := hooks_of(parameter):
            found[name] = hooks
    return found


def hooked(tensors: dict[str, torch.Tensor], hooks: Hooks) -> dict[str, torch.Tensor]:
    """Return the tensors, those with hooks as aliases on which the hooks are registered."""
    if not hooks or not torch.is_grad_enabled():
        return tensors
    aliases = {}
    for name, each in hooks.items():
        if tensors[name].requires_grad:
            aliases[name] = tensors[name].view_as(tensors[name])
            for hook in each:
                aliases[name].register_hook(hook)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return {**tensors, **aliases}


@contextlib.contextmanager
def without_hooks(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Inside, the hooks of these tensors do not run."""
    registered: list[Any] = [hooks for tensor in tensors if (hooks := tensor._backward_hooks)]
    kept = [dict(hooks) for hooks in registered]
    for hooks in registered:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, items in zip(registered, kept, strict=True):
            hooks.update(items)
