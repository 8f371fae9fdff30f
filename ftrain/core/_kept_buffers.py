"""Snapshot of buffers at the start of an activation-checkpointed region, for its recomputation."""

from __future__ import annotations

from typing import Any, NoReturn, cast

import torch

from ftrain.core import _torch, tree
from ftrain.core._torch_tensors import storage_id, version
from ftrain.core.errors import ImpureFunctionError

__all__ = ["KeptBuffers", "Lost"]

# Tensors of up to this number of elements are copied at the start of each region (statistics, but not
# masks).
SMALL = 65_536


class KeptBuffers:
    """Snapshot of a model's buffers and frozen parameters, from which a forward pass can start again.

    A forward pass may write to them afterwards, as BatchNorm, spectral normalization and momentum
    encoders do. Small tensors are copied. A write to a large one is detected by its version
    counter, or by its storage, which an assignment to `.data` replaces; a write to its values through
    `.data` is not.

    Args:
        tensors: buffers and frozen parameters, by name.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        with _torch.unwatched():
            large: dict[str, Any] = {name: t for name, t in tensors.items() if t.numel() > SMALL}
            self._marks = {name: _mark(t) for name, t in large.items() if not isinstance(t, Lost)}
        self._copies = {name: t.clone() for name, t in tensors.items() if name not in large}

    def restored(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the snapshot.

        The use of a large one that was written to since then raises an ImpureFunctionError.
        """
        with _torch.unwatched():
            now = {name: _mark(self.tensors[name]) for name in self._marks}
        lost = [name for name, mark in self._marks.items() if now[name] != mark]
        return {
            **self.tensors,
            **{name: cast(torch.Tensor, Lost(name, self.tensors[name])) for name in lost},
            **{name: copy.clone() for name, copy in self._copies.items()},
        }


def _mark(tensor: torch.Tensor) -> tuple[int, int]:
    """Return numbers of which a write to a tensor changes one."""
    try:
        return version(tensor), storage_id(tensor)
    except RuntimeError:  # a wrapped tensor has no storage
        return version(tensor), 0


class Lost:
    """Substitute for a tensor whose values are lost, with its shape and dtype; any use raises."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self.__dict__["_name"], self.__dict__["_tensor"] = name, tensor

    def numel(self) -> int:
        """Return the number of elements."""
        return self._tensor.numel()  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._tensor, name)
        if callable(value) or isinstance(value, torch.Tensor):
            self._refuse()
        return value

    __hash__ = object.__hash__

    def _refuse(self) -> NoReturn:
        raise ImpureFunctionError(
            f"the model wrote to its buffer {self._name!r} during or after a region under activation "
            "checkpointing that reads it, and that the backward pass must compute again. Buffers and "
            f"frozen parameters of up to {SMALL} elements are restored for that, but this one has "
            f"{self._tensor.numel()}. Write to it before the first such region, or read it outside of "
            "them."
        )

    def _use(self, *_: Any) -> NoReturn:
        self._refuse()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = tree.leaves((args, kwargs or {}))
        next(x for x in given if isinstance(x, cls))._refuse()


_COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")

# Python finds operators in the class, not through `__getattr__`.
for _name in dir(torch.Tensor):
    is_own = _name in _COMPARISONS or not hasattr(object, _name)
    is_special = _name.startswith("__") and not _name.startswith("__torch")
    if is_own and is_special and callable(getattr(torch.Tensor, _name)):
        setattr(Lost, _name, Lost._use)
