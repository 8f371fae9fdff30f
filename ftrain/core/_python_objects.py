"""Kinds of Python objects: the objects they hold, and the names their code reads.

Read next: `_reachable_objects.py`, the walk over objects that uses these functions.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import dis
import functools
import random
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = [
    "ATOMS", "CODE", "GENERATORS", "LARGE_ARRAY", "LIBRARIES", "brief",
    "cell_contents", "data_names", "dict_of", "is_dynamo_wrapper", "is_open", "is_running",
    "names_bound", "names_read", "slot_names", "top_package",
]  # fmt: skip

# Types whose instances do not refer to other objects.
ATOMS = frozenset(
    {
        type(None), bool, int, float, complex, str, bytes, range, slice, type(...), type(NotImplemented),
        torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size,
        types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodWrapperType,
        types.MethodDescriptorType, types.ClassMethodDescriptorType, types.GetSetDescriptorType,
        types.MemberDescriptorType, types.ModuleType, types.CodeType, types.FrameType,
        types.MappingProxyType, type, object, np.dtype,
    }
)  # fmt: skip
# Classes of the standard library whose instances may contain objects of user code.
_OPEN = (types.SimpleNamespace, argparse.Namespace, collections.UserDict, collections.UserList,
         collections.ChainMap, functools.partialmethod, functools.cached_property)  # fmt: skip
LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "ftrain", "optree", "builtins"}
LARGE_ARRAY = 2**24  # bytes; larger arrays, such as memory-mapped data sets, are not copied
GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator,
               torch.Generator)  # fmt: skip


CODE = (types.FunctionType, staticmethod, classmethod, property, functools.cached_property,
         functools.partialmethod, type(functools.lru_cache(len)))  # fmt: skip


def cell_contents(cell: types.CellType) -> Any:
    """Return the content of a closure cell; `None` for an empty cell."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def dict_of(value: Any) -> dict[str, Any] | None:
    """Return the `__dict__` of an instance; `None` if it has none."""
    try:
        attributes = value.__dict__
    except Exception:  # a proxy, or a class that defines `__getattribute__`
        return None
    return attributes if type(attributes) is dict else None


def is_open(cls: type) -> bool:
    """Return True if instances of a class may contain objects of user code."""
    top = top_package(cls)
    if issubclass(cls, _OPEN) or dataclasses.is_dataclass(cls):
        return True
    return top not in sys.stdlib_module_names and top not in ("ftrain", "optree", "builtins")


def is_running(value: object) -> bool:
    """Return True for a running thread, which may change its own attributes at any time.

    The monitor thread of tqdm changes its attribute `woken`, for example.
    """
    return isinstance(value, threading.Thread) and value.is_alive()


def slot_names(cls: type) -> tuple[str, ...]:
    """Return the names in `__slots__` of a class and its bases, without those that a subclass overrides.

    Such a name, a property of the subclass over the slot of a base (as in mpmath's constants), may have
    another value at each reading and cannot be set.
    """
    names: dict[str, None] = {}
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                hidden = name.startswith("__") and not name.endswith("__")
                names[f"_{base.__name__.lstrip('_')}{name}" if hidden else name] = None
    return tuple(name for name in names if isinstance(_held(cls, name), types.MemberDescriptorType))


def _held(cls: type, name: str) -> Any:
    """Return an attribute of a class or a base without calling descriptors; `None` if it is missing."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def data_names(cls: type) -> tuple[str, ...]:
    """Return the names of a class's data attributes, without functions and Python's own names."""
    return tuple(
        name
        for name, held in vars(cls).items()
        if not (name.startswith("__") and name.endswith("__"))
        and not isinstance(held, (*CODE, type, types.MemberDescriptorType))
        and name != "_abc_impl"
    )


@functools.lru_cache(maxsize=4096)
def names_read(code: types.CodeType) -> frozenset[str]:
    """Return the names of the globals and attributes that a function and its inner functions read."""
    return frozenset(_each_name(code))


@functools.lru_cache(maxsize=4096)
def names_bound(code: types.CodeType) -> frozenset[str]:
    """Return the closure variables that a function or a nested function may rebind (`nonlocal`)."""
    bound = {
        instruction.argval
        for instruction in dis.get_instructions(code)
        if instruction.opname in ("STORE_DEREF", "DELETE_DEREF")
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            bound |= names_bound(constant)
    return frozenset(bound)


def _each_name(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _each_name(constant)


def top_package(thing: Any) -> str:
    """Return the top-level package that a class, function or module belongs to."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else thing.__module__
    return str(name).partition(".")[0]


def is_dynamo_wrapper(function: types.FunctionType) -> bool:
    """Return True for a function returned by `torch.compile`, despite its copied name and module.

    Such a function also refers to torch's own state, which changes with each trace.
    """
    home = str(function.__globals__.get("__name__"))
    return home.startswith("torch._dynamo.") and "__wrapped__" in vars(function)


def brief(key: Any) -> str:
    """Format a dict key for a message: the value of a string or number, the class name of other keys."""
    return repr(key) if isinstance(key, (str, int, float, bool, bytes)) else type(key).__name__
