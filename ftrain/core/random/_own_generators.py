"""Random generators created by user code and reachable from a function, and their states.

A generator such as `numpy.random.default_rng(0)` or `random.Random(0)` in a closure, in a global
variable or in an attribute of a model gives different numbers at each call. Its draws cannot be
intercepted, so its state is compared before and after a call. A generator that the function itself
creates is not found, and is harmless: its numbers depend on its seed alone. A `torch.Generator` is
detected in the call to which it is passed.
"""

from __future__ import annotations

import functools
import os
import pickle
import random
import sysconfig
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ftrain.core._user_line import is_foreign

__all__ = ["GLOBAL", "reachable", "set_state", "state_of"]

Generator = np.random.Generator | np.random.RandomState | random.Random
_KINDS = (np.random.Generator, np.random.RandomState, random.Random)
_MOST = 20_000  # maximum number of objects


def reachable(*roots: Any) -> tuple[Generator, ...]:
    """Return the generators that are reachable from functions and modules.

    The search follows closures, default arguments, partial arguments, bound objects, the global
    variables that user code names, attributes and methods of modules and of plain objects, and
    containers. It does not follow the code of installed packages, and does not return the global
    generators.
    """
    found: dict[int, Generator] = {}
    seen: dict[int, Any] = {}  # references prevent the reuse of ids
    todo = list(roots)
    while todo and len(seen) < _MOST:
        value = todo.pop()
        if id(value) in seen or type(value) in _PLAIN or isinstance(value, _LEAVES):
            continue
        seen[id(value)] = value
        if isinstance(value, _KINDS):
            if not any(value is one for one in GLOBAL):
                found[id(value)] = value
        else:
            todo += _parts(value)
    return tuple(found.values())


def state_of(generator: Generator) -> bytes:
    """Return a generator's state as bytes."""
    if isinstance(generator, np.random.Generator):
        return pickle.dumps(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return pickle.dumps(generator.get_state(legacy=False))
    try:
        return pickle.dumps(generator.getstate())
    except NotImplementedError:  # random.SystemRandom has no state
        return b""


def set_state(generator: Generator, state: bytes) -> None:
    """Set a generator to a state that `state_of` returned."""
    if state:
        value = pickle.loads(state)
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = value
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(value)
        else:
            generator.setstate(value)


GLOBAL: tuple[Any, ...] = (
    np.random.mtrand._rand,  # behind np.random.rand
    random._inst,  # behind random.random
)
_LEAVES = (torch.Tensor, np.ndarray, str, bytes, int, float, complex)
_PLAIN = frozenset({str, int, float, bool, type(None), nn.Parameter, torch.Tensor, torch.dtype})
_INSTALLED = tuple(
    os.path.abspath(sysconfig.get_path(name)) + os.sep
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
# Attributes that every module has, including hooks and excluding children.
_STANDARD = frozenset(nn.Module().__dict__) - {"_modules"}
_HOOKS = [name for name in _STANDARD if name.endswith("_hooks")]


def _parts(value: Any) -> Iterator[Any]:
    """Yield the objects that a value refers to: captured variables, attributes, elements."""
    if isinstance(value, types.FunctionType):
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        yield from _contents(value)
        if _is_followed(value.__code__.co_filename):
            yield from _globals(value.__code__, value.__globals__)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from value
    elif isinstance(value, nn.Module):
        held = value.__dict__
        yield from (part for name, part in held.items() if name not in _STANDARD)
        yield from (held[name] for name in _HOOKS if held.get(name))
        yield type(value)
    elif isinstance(value, type):
        yield from _methods(value)
    elif not isinstance(value, types.ModuleType):
        yield from getattr(value, "__dict__", {}).values()
        yield type(value)


def _methods(kind: type) -> Iterator[types.FunctionType]:
    """Yield the methods of a class that user code defines."""
    for each in kind.__mro__:
        for method in vars(each).values():
            is_function = isinstance(method, types.FunctionType)
            if is_function and _is_followed(method.__code__.co_filename):
                yield method


@functools.lru_cache(maxsize=4096)
def _is_followed(filename: str) -> bool:
    """Return True for a file of user code, which is neither installed nor part of Python."""
    return not is_foreign(filename) and not filename.startswith(_INSTALLED)


def _contents(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the variable is not bound yet
            continue


def _globals(code: types.CodeType, scope: dict[str, Any]) -> Iterator[Any]:
    """Yield the global variables, and the attributes of user modules, that code refers to."""
    for name in code.co_names:
        value = scope.get(name)
        if isinstance(value, types.ModuleType):
            if _is_followed(getattr(value, "__file__", None) or "<built-in>"):
                held = (getattr(value, attribute, None) for attribute in code.co_names)
                yield from (one for one in held if isinstance(one, (*_KINDS, types.FunctionType)))
        else:
            yield value
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant, scope)
