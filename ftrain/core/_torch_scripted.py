"""Private torch APIs of TorchScript: the attributes of a scripted module, errors of its tracer.

Like `_torch.py`, this file names the versions that have what it uses and what happens without it.
"""

from __future__ import annotations

import os
import traceback
from typing import Any

import torch
from torch import nn

__all__ = ["attributes_of", "is_scripted", "set_attribute", "tracer_failed"]

_TRACER = os.path.join(os.path.dirname(os.path.abspath(torch.__file__)), "jit", "_trace.py")
_NOT_STATE = ("training", "_is_full_backward_hook")


def is_scripted(module: nn.Module) -> bool:
    """Return True for a module of `torch.jit.script`, `trace` or `load`."""
    return isinstance(module, torch.jit.ScriptModule)


def attributes_of(module: Any) -> dict[str, Any]:
    """Return a scripted module's own attributes; tensors are the originals, containers are copies.

    (`_concrete_type.get_attributes`: torch 1.5 and later.)
    """
    names = module._concrete_type.get_attributes()
    return {name: module._c.getattr(name) for name in names if name not in _NOT_STATE}


def set_attribute(module: Any, name: str, value: Any) -> None:
    """Set an attribute that TorchScript stores for a scripted module (torch 1.5 and later)."""
    module._c.setattr(name, value)


def tracer_failed(error: BaseException) -> bool:
    """Return True if an error was raised by `torch.jit.trace` or by the code that it traced."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == _TRACER for frame, _ in frames)
