"""Detection of code that reads a tensor's value on the host.

A dispatch mode sees the operators that read a value or need one for the shape of their output. Methods
that read the memory of a CPU tensor without an operator (`tolist`, `numpy`) are replaced during the
block.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ftrain.core._torch_dispatch import DispatchMode, OpOverload, names_of
from ftrain.core._user_line import is_foreign, show
from ftrain.core.compile._observers import observers
from ftrain.testing._frames import innermost, is_ours

__all__ = ["no_host_sync"]

# `__repr__` is replaced too: it disables torch.func while its frame exists, and the traceback of an
# error raised inside it would keep that frame alive.
_METHODS = ("numpy", "tolist", "__array__", "__dlpack__", "__repr__")
_INDEXED = ("index", "index_put", "index_put_", "_unsafe_index")


@contextlib.contextmanager
def no_host_sync() -> Iterator[None]:
    """Raise if a `with` block reads a tensor's value on the host, except during compilation."""
    watch = _Watch()
    observers.append(watch.paused)
    try:
        with watch.methods_replaced(), watch.cuda_errors(), _Mode(watch.refuse):
            yield
    finally:
        observers.remove(watch.paused)


class _Watch:
    """State of one `no_host_sync` block, in which reading a tensor's value on the host raises."""

    def __init__(self) -> None:
        self.compiling = 0

    @contextlib.contextmanager
    def paused(self, name: str, reason: str) -> Iterator[None]:
        self.compiling += 1
        on_cuda = torch.cuda.is_available()
        before = torch.cuda.get_sync_debug_mode() if on_cuda else 0
        try:
            if on_cuda:
                torch.cuda.set_sync_debug_mode("default")
            yield
        finally:
            self.compiling -= 1
            if on_cuda:
                torch.cuda.set_sync_debug_mode(before)

    def refuse(self, what: str, tensor: torch.Tensor) -> None:
        """Raise for a read of a tensor's value, unless torch compiles or ftrain reads a CPU tensor."""
        if self.compiling:
            return
        frame = innermost()
        if frame is None or (tensor.device.type == "cpu" and is_ours(frame)):
            return
        raise AssertionError(
            f"{what}: expected no read of a tensor's value, got one at\n{show(frame)}\nCompute with "
            "tensors (torch.where instead of `if`), and read values after the step, when they are "
            "logged."
        )

    @contextlib.contextmanager
    def methods_replaced(self) -> Iterator[None]:
        originals = {name: getattr(torch.Tensor, name) for name in _METHODS}
        inherited = [name for name in _METHODS if name not in vars(torch.Tensor)]
        for name, method in originals.items():
            setattr(torch.Tensor, name, self._replacement(name, method))
        try:
            yield
        finally:
            for name, method in originals.items():
                if name in inherited:
                    delattr(torch.Tensor, name)
                else:
                    setattr(torch.Tensor, name, method)

    def _replacement(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def refusing(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.refuse(f"Tensor.{name}", tensor)
            return method(tensor, *args, **kwargs)

        return refusing

    @contextlib.contextmanager
    def cuda_errors(self) -> Iterator[None]:
        """Raise AssertionError instead of torch's RuntimeError if a CUDA call waits for the device."""
        if not torch.cuda.is_available():
            yield
            return
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        except RuntimeError as error:
            if "synchronizing CUDA operation" not in str(error):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            line = next((f for f in reversed(frames) if not is_foreign(f.filename)), frames[-1])
            raise AssertionError(
                f"{error}: expected no wait for the device, got one at\n{show(line)}\nCompute with "
                "tensors, and read values after the step, when they are logged."
            ) from error
        finally:
            torch.cuda.set_sync_debug_mode(before)


class _Mode(DispatchMode):
    """Dispatch mode that reports operators that need a tensor's value on the host."""

    def __init__(self, refuse: Callable[[str, torch.Tensor], None]) -> None:
        super().__init__()
        self._refuse = refuse

    def __torch_dispatch__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        tensor = _read(func, args)
        if tensor is not None:
            self._refuse(str(func).removesuffix(".default"), tensor)
        return func(*args, **(kwargs or {}))


def _read(func: Any, args: tuple[Any, ...]) -> torch.Tensor | None:
    """Return the tensor whose value an operator reads on the host; `None` if it reads none."""
    first = next((each for each in args if isinstance(each, torch.Tensor)), None)
    if first is None or not isinstance(func, OpOverload):
        return None
    if names_of(func)[0] in _INDEXED:  # only masks read values, but the tags cover all indices
        indices = args[1] if len(args) > 1 else ()
        masks = (torch.bool, torch.uint8)
        found = [i for i in indices if isinstance(i, torch.Tensor) and i.dtype in masks]
        return found[0] if found else None
    tags = func.tags
    if torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags:
        return first
    return None
