"""Private torch APIs: attributes of tensors, autograd nodes and modules.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

__all__ = [
    "BACKWARD",
    "MODULE_CALL",
    "BatchNorm",
    "InstanceNorm",
    "copy_all",
    "current_node",
    "forward_class",
    "gradient_hooks",
    "has_accumulation_hooks",
    "has_call_hooks",
    "is_evaluation_node",
    "is_zero_tensor",
    "node_number",
    "registries",
    "storage_id",
    "version",
]

#: Base classes of the normalizations over a batch (1.0 and later).
BatchNorm, InstanceNorm = _BatchNorm, _InstanceNorm

#: Code of the function that runs every backward pass (2.1 and later; else none).
BACKWARD: Any = getattr(
    getattr(torch.autograd.graph, "_engine_run_backward", None), "__code__", None
)

#: Code of the function that every call of a module runs (1.0 and later).
MODULE_CALL = nn.Module._call_impl.__code__


def version(tensor: torch.Tensor) -> int:
    """Return a tensor's version counter (torch 0.4 and later); raise for an inference tensor."""
    return tensor._version


def storage_id(tensor: torch.Tensor) -> int:
    """Return the identity of a tensor's storage (`untyped_storage`, torch 2.0 and later).

    Unlike a memory address, it exists for fake tensors too. Wrapped tensors raise.
    """
    return int(tensor.untyped_storage()._cdata)


def is_zero_tensor(tensor: torch.Tensor) -> bool:
    """Return True for a tensor of zeros without memory (torch 1.11 and later)."""
    return tensor._is_zerotensor()


def is_evaluation_node(node: Any) -> bool:
    """Return True for the node of a BatchNorm in eval mode (torch 1.9 and later; False before)."""
    return not getattr(node, "_saved_train", True)


def gradient_hooks(tensor: torch.Tensor) -> dict[int, Callable[..., Any]] | None:
    """Return the dict in which `register_hook` keeps a tensor's hooks (torch 0.4 and later)."""
    hooks: Any = tensor._backward_hooks
    return hooks  # type: ignore[no-any-return]


def has_accumulation_hooks(tensor: torch.Tensor) -> bool:
    """Return True if `register_post_accumulate_grad_hook` was called (torch 2.1 and later)."""
    return bool(tensor._post_accumulate_grad_hooks)


def node_number(node: Any) -> int:
    """Return an autograd node's number, which increases within a thread (torch 1.12 and later)."""
    return int(node._sequence_nr())


def current_node() -> Any:
    """Return the autograd node whose backward runs in this thread, or `None` (torch 2.0 and later)."""
    return torch._C._current_autograd_node()


def forward_class(node: Any) -> Any:
    """Return the `torch.autograd.Function` of a node or of a node's class (torch 1.0 and later)."""
    return node._forward_cls


def registries(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the dicts of a module's own parameters, buffers and children (torch 1.0 and later)."""
    return module._parameters, module._buffers, module._modules


def has_call_hooks(module: nn.Module) -> bool:
    """Return True if functions run before or after a module's forward or backward pass (2.0)."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


def copy_all(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Copy tensors of one dtype on one device in few kernels (`_foreach_copy_`, torch 2.1 and later)."""
    with torch.no_grad():
        torch._foreach_copy_(list(targets), list(sources), non_blocking=True)
