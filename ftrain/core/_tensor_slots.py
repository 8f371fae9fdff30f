"""Locations of a module's parameters and buffers: registries, attributes, lists, closures."""

from __future__ import annotations

import collections
import contextlib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ftrain.core._hooks import Hooks
from ftrain.core._python_objects import cell_contents
from ftrain.core._reachable_objects import Attributes, Found, Path, reach, spell

__all__ = ["Slot", "refuse_captured", "refuse_fixed", "refuse_leftovers", "replaced", "slots_of"]


class Slot(NamedTuple):
    """Location `holder[key]`, inside a module, of the parameter or buffer called `name`.

    The holder is a dict, list or deque that the module reaches, or an adapter for a closure or instance.
    """

    holder: Any
    key: Any
    name: str

    def get(self) -> Any:
        """Return the value at this location; `None` if the location no longer exists."""
        try:
            return self.holder[self.key]
        except LookupError:
            return None

    def set(self, value: Any) -> None:
        """Store a value at this location; do nothing if the location no longer exists.

        A location that no longer exists is restored when its holder is.
        """
        if self.get() is not None:
            self.holder[self.key] = value


class _Cell:
    """Adapter that reads and writes a closure cell as `holder[None]`, for a `Slot`."""

    def __init__(self, cell: types.CellType) -> None:
        self._cell = cell

    def __getitem__(self, _: None) -> Any:
        return cell_contents(self._cell)

    def __setitem__(self, _: None, value: Any) -> None:
        self._cell.cell_contents = value


class _Instance:
    """Adapter that reads and writes attributes in `__slots__` as `holder[name]`, for a `Slot`."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def __getitem__(self, name: str) -> Any:
        return getattr(self._instance, name, None)

    def __setitem__(self, name: str, value: Any) -> None:
        object.__setattr__(self._instance, name, value)


@contextlib.contextmanager
def replaced(slots: Iterable[Slot], tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Store tensors at the locations of their names inside the context, then the former ones again."""
    before = [(slot, slot.get()) for slot in slots if slot.name in tensors]
    try:
        for slot, _ in before:
            slot.set(tensors[slot.name])
        yield
    finally:
        for slot, tensor in before:
            slot.set(tensor)


def slots_of(found: Found, names: Mapping[int, str]) -> list[Slot]:
    """Return every location at which the objects in `found` hold one of the named tensors.

    Args:
        found: the objects.
        names: the name of each tensor, by the tensor's `id`.
    """
    return [
        Slot(holder, key, names[id(value)])
        for holder, key, value in _places(found)
        if isinstance(value, torch.Tensor) and id(value) in names
    ]


def _places(found: Found) -> Iterator[tuple[Any, Any, Any]]:
    for container in (*found.instances, *found.containers):
        if isinstance(container, dict):
            for key, value in dict.items(container):
                yield container, key, value
        elif isinstance(container, (list, collections.deque)):
            for place, value in enumerate(container):
                yield container, place, value
    for cell in found.cells:
        yield _Cell(cell), None, cell_contents(cell)
    for view in found.views:
        if isinstance(view, Attributes):
            for name in view.names:
                yield _Instance(view.instance), name, getattr(view.instance, name, None)


def refuse_fixed(module: nn.Module, names: Mapping[int, str]) -> None:
    """Raise if a module holds a parameter or buffer in a tuple or set, where it cannot be replaced.

    Args:
        module: the module.
        names: the name of each parameter and buffer, by the tensor's `id`.

    Raises:
        ValueError: it holds one; the message names the attribute and the tensor.
    """
    for m in module.modules():
        for attribute, value in m.__dict__.items():
            _refuse_fixed(value, names, attribute)


def refuse_leftovers(
    tensors: Iterable[tuple[Path, torch.Tensor]], names: Mapping[int, str]
) -> None:
    """Raise if a module holds a buffer where it cannot be replaced, such as in a default argument.

    A default argument, a tuple or a class attribute would keep the first values. (A trainable parameter
    there raises when it is used.)

    Args:
        tensors: the tensors that the module holds after its slots were filled with others.
        names: the name of each buffer and frozen parameter, by the tensor's `id`.
    """
    for path, tensor in tensors:
        if id(tensor) in names:
            raise ValueError(
                f"`{spell(path)}` holds the module's own {names[id(tensor)]!r} where the state's tensor "
                "cannot take its place (a default argument, a tuple, an attribute of a class): expected "
                f"it in an attribute, list or dict. Read self.{names[id(tensor)]} in forward instead."
            )


def refuse_captured(hooks: Hooks, tensors: Iterable[torch.Tensor]) -> None:
    """Raise if a hook captures one of `tensors`, because a state's tensor cannot replace it there.

    Args:
        hooks: the hooks of a module's parameters, by name.
        tensors: the parameters and buffers of the module.

    Raises:
        ValueError: a hook captures one; the message names the hook's parameter and the tensor.
    """
    owned = {id(tensor) for tensor in tensors} if hooks else set()
    for name, each in hooks.items():
        for path, tensor in reach([("", each)]).tensors:
            if id(tensor) in owned:
                raise ValueError(
                    f"a hook of the parameter {name!r} captures a tensor of the module itself "
                    f"(`{spell(path)}`), which keeps its values when the state changes. Pass "
                    "a function that builds the module and registers the hook: "
                    "make_steps(lambda: Net(...), ...)."
                )


def _refuse_fixed(value: Any, names: Mapping[int, str], attribute: str) -> None:
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_fixed(item, names, attribute)
    elif isinstance(value, (tuple, set, frozenset)):
        for item in value:
            if isinstance(item, torch.Tensor) and id(item) in names:
                raise ValueError(
                    f"the attribute {attribute!r}: expected parameters and buffers in a list or dict, "
                    f"got {names[id(item)]!r} in a {type(value).__name__}, whose items cannot be "
                    "replaced by the state's tensors. Use a list."
                )
            if isinstance(item, (list, dict, tuple)) and _holds(item, names):
                raise ValueError(
                    f"the attribute {attribute!r}: expected parameters and buffers in lists or dicts, "
                    f"got them nested in a {type(value).__name__}, whose items cannot be replaced by "
                    "the state's tensors. Use lists."
                )


def _holds(value: Any, names: Mapping[int, str]) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return any(
        id(item) in names
        if isinstance(item, torch.Tensor)
        else isinstance(item, (list, dict, tuple)) and _holds(item, names)
        for item in items
    )
