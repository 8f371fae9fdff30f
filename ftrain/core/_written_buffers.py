"""Record of the buffers that a model writes to, for ranks that must combine them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ftrain.core._torch_tensors import version

__all__ = ["WrittenBuffers"]

_NAMES = ("batch_norm", "instance_norm")


class WrittenBuffers:
    """Record of the buffers that a model writes to or replaces in its forward pass.

    Attributes:
        names: the names of all that were, in any call so far.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()

    @contextlib.contextmanager
    def recording(self, module: nn.Module) -> Iterator[None]:
        """Return a context in which writes to the module's buffers are recorded."""
        before = {name: (b, version(b)) for name, b in module.named_buffers()}
        if not before:
            yield
            return
        normalized = _Normalized()
        with normalized:
            yield
        for name, b in module.named_buffers():
            old, count = before.get(name, (None, 0))
            if old is not b or count != version(b) or id(b) in normalized.places:
                self.names.add(name)


class _Normalized(TorchFunctionMode):
    """Record of running statistics that normalizations write without changing version counters."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if any(each in name for each in _NAMES):
            flag = kwargs.get("training", kwargs.get("use_input_stats", True))
            # Statistics are the arguments 1 and 2 of torch.nn.functional, and 3 and 4 of torch.
            given = [*args[1:5], kwargs.get("running_mean"), kwargs.get("running_var")]
            if args[5] if len(args) > 5 else flag:
                self.places |= {id(x) for x in given if isinstance(x, torch.Tensor)}
        return func(*args, **kwargs)
