"""Walk from a module or a function to every Python object that it holds.

A model may keep state in any of them: a counter in a nested list, a cache on an object, a hook that it
registers, an attribute of its class. The walk goes through containers, instances, closures, default
arguments and the data of classes (those of instances, and autograd functions); it stops at Python
modules, at the classes of the standard library and at objects without Python attributes.

Read next: `_restored_objects.py`, which compares and restores what is found here.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import enum
import functools
import io
import operator
import types
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ftrain.core._python_objects import (
    ATOMS,
    CODE,
    GENERATORS,
    LARGE_ARRAY,
    LIBRARIES,
    brief,
    cell_contents,
    data_names,
    dict_of,
    is_dynamo_wrapper,
    is_open,
    is_running,
    names_bound,
    names_read,
    slot_names,
    top_package,
)
from ftrain.core._torch_scripted import attributes_of, is_scripted
from ftrain.core._torch_tensors import registries

__all__ = [
    "MISSING",
    "Attributes",
    "Class",
    "Found",
    "Globals",
    "Path",
    "reach",
    "spell",
]

Path = tuple[Any, str]  # the path of the holder (or None), and the accessor of this object in it

MISSING = object()  # stands for an attribute that is not set


@functools.cache
def _getter(names: tuple[str, ...]) -> Callable[[Any], Sequence[Any]]:
    if len(names) > 1:
        return operator.itemgetter(*names)  # a fifth of the time of a comprehension
    return lambda scope: [scope[name] for name in names]


class Attributes(NamedTuple):
    """Attributes that an instance stores in `__slots__`."""

    instance: Any
    names: tuple[str, ...]


class Class(NamedTuple):
    """Data attributes of a class, without its functions and the names that Python adds.

    Attributes:
        cls: the class.
        names: the names of its data.
        known: all names that it has.
    """

    cls: type
    names: tuple[str, ...]
    known: frozenset[str]

    def read(self) -> Sequence[Any]:
        """Return the values of the class attributes `names`; `MISSING` for a deleted one."""
        scope = vars(self.cls)
        try:
            return _getter(self.names)(scope)
        except KeyError:
            return [scope.get(name, MISSING) for name in self.names]


class Globals(NamedTuple):
    """Names of the global variables that a function reads, with the dict that holds them."""

    scope: dict[str, Any]
    names: tuple[str, ...]


@dataclasses.dataclass
class Found:
    """Objects that can be reached from a module or function, each once, found breadth first.

    Attributes:
        instances: the `__dict__` of modules and other instances.
        containers: dicts, lists, deques and sets, subclasses included.
        cells: the cells of closures.
        views: `Attributes`, `Class` and `Globals`.
        buffers: NumPy arrays, bytearrays and `array.array`s.
        generators: random number generators.
        iterators: iterators and open files.
        caches: functions under `functools.lru_cache`.
        classes: classes that functions name, as global variables or in closures.
        tensors: tensors, each with its path.
        modules: the modules among the instances.
        scripted: the modules of TorchScript among these, which hold their attributes outside of Python.
        paths: the path by which each object was first reached, by its id.
        complete: the walk was not cut short by its limit.
    """

    instances: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    containers: list[Any] = dataclasses.field(default_factory=list)
    cells: list[types.CellType] = dataclasses.field(default_factory=list)
    views: list[Any] = dataclasses.field(default_factory=list)
    buffers: list[Any] = dataclasses.field(default_factory=list)
    generators: list[Any] = dataclasses.field(default_factory=list)
    iterators: list[Any] = dataclasses.field(default_factory=list)
    caches: list[Any] = dataclasses.field(default_factory=list)
    classes: list[type] = dataclasses.field(default_factory=list)
    tensors: list[tuple[Path, torch.Tensor]] = dataclasses.field(default_factory=list)
    modules: list[nn.Module] = dataclasses.field(default_factory=list)
    scripted: list[nn.Module] = dataclasses.field(default_factory=list)
    paths: dict[int, Path] = dataclasses.field(default_factory=dict)
    complete: bool = True
    _alive: list[Any] = dataclasses.field(default_factory=list)  # so that no id is used again

    def split(self, ids: Set[int]) -> tuple[Found, Found]:
        """Return the objects whose `id` is in `ids`, and the other objects with all global variables."""
        mine, others = Found(), Found()
        for name in _WATCHED:
            for node in getattr(self, name):
                owner = node[0] if isinstance(node, (Attributes, Class)) else node
                is_mine = id(owner) in ids and not isinstance(node, Globals)
                getattr(mine if is_mine else others, name).append(node)
        return mine, others


_WATCHED = ("instances", "containers", "cells", "views", "buffers", "generators", "iterators",
            "scripted")  # fmt: skip


def spell(path: Path | None) -> str:
    """Format a path as a Python expression, without a leading dot.

    >>> spell(((None, ".blocks"), "[0]"))
    'blocks[0]'
    """
    parts: list[str] = []
    while path is not None:
        path, label = path
        parts.append(label)
    return "".join(reversed(parts)).removeprefix(".")


def reach(
    roots: Iterable[tuple[str, Any]],
    *,
    follow_globals: bool = False,
    whole_modules: bool = True,
    limit: int | None = None,
) -> Found:
    """Return the objects reachable from `roots`, found breadth first.

    Args:
        roots: names and objects.
        follow_globals: follow the global names that functions read, too.
        whole_modules: look at a module's attributes; else at its parameters, buffers and children.
        limit: the largest number of objects to visit.
    """
    walk = _Walk(follow_globals, whole_modules)
    for name, root in roots:
        walk.meet((None, name), root)
    queue = walk.queue
    while queue:
        if limit is not None and len(walk.found.paths) > limit:
            walk.found.complete = False
            break
        path, value = queue.popleft()
        walk.visit(path, value)
    return walk.found


class _Walk:
    def __init__(self, follow_globals: bool, whole_modules: bool) -> None:
        self.found = Found()
        self.queue: collections.deque[tuple[Path, Any]] = collections.deque()
        self._follow_globals = follow_globals
        self._whole_modules = whole_modules
        self._classes: set[type] = set()
        self._registries: set[int] = set()  # of modules: their entries are called like attributes

    def meet(self, path: Path, value: Any) -> None:
        """Queue an object, unless it was queued before or cannot hold user objects."""
        if type(value) in ATOMS or id(value) in self.found.paths:
            return
        self.found.paths[id(value)] = path
        self.found._alive.append(value)
        self.queue.append((path, value))

    def visit(self, path: Path, value: Any) -> None:
        for kinds, visit in _VISITS:
            if isinstance(value, kinds):
                visit(self, path, value)
                return
        if isinstance(value, type):
            if issubclass(value, torch.autograd.Function):  # its backward is called by autograd
                self.classes(value)
            return
        if isinstance(value, collections.abc.Iterator) and dict_of(value) is None:
            self.found.iterators.append(value)
        elif is_open(type(value)) and not is_running(value):
            self.instance(path, value)

    def instance(self, path: Path, value: Any) -> None:
        attributes = dict_of(value)
        if attributes is not None:
            self.found.instances.append(attributes)
            self.found.paths[id(attributes)] = path
            for name, held in attributes.items():
                self.meet((path, f".{name}"), held)
        names = slot_names(type(value))
        if names:
            view = Attributes(value, names)
            self.found.views.append(view)
            self.found.paths[id(view)] = path
            for name in names:
                self.meet((path, f".{name}"), getattr(value, name, None))
        self.classes(type(value))

    def classes(self, cls: type) -> None:
        for base in cls.__mro__:
            if base in self._classes or top_package(base) in LIBRARIES:
                continue
            self._classes.add(base)
            path = (None, base.__qualname__)
            self.found.paths[id(base)] = path
            names = data_names(base)
            self.found.views.append(view := Class(base, names, frozenset(vars(base))))
            self.found.paths[id(view)] = path
            for name, held in vars(base).items():
                if name in names or isinstance(held, CODE):
                    self.meet((path, f".{name}"), held)

    def module(self, path: Path, module: nn.Module) -> None:
        self.found.modules.append(module)
        if is_scripted(module):  # its tensors and attributes are in no Python object
            self.scripted(path, module)
        own = registries(module)
        self._registries.update(map(id, own))
        for registry in own:  # before __dict__ is met: children are called by their names
            self.found.paths[id(registry)] = path
            self.found._alive.append(registry)
            self.queue.append((path, registry))
        if self._whole_modules:
            self.instance(path, module)

    def scripted(self, path: Path, module: nn.Module) -> None:
        held = attributes_of(module) if self._whole_modules else {}
        if self._whole_modules:
            self.found.scripted.append(module)
        for name, value in (*module.named_parameters(), *module.named_buffers(), *held.items()):
            self.meet((path, f".{name}"), value)

    def mapping(self, path: Path, mapping: dict[Any, Any]) -> None:
        self.found.containers.append(mapping)
        named = id(mapping) in self._registries
        for key, held in dict.items(mapping):
            self.meet((path, f".{key}" if named else f"[{brief(key)}]"), held)
        self._subclass(path, mapping)

    def sequence(self, path: Path, sequence: Any) -> None:
        if not isinstance(sequence, tuple):
            self.found.containers.append(sequence)
        names = getattr(type(sequence), "_fields", None)
        for place, held in enumerate(sequence):
            self.meet((path, f".{names[place]}" if names else f"[{place}]"), held)
        self._subclass(path, sequence)

    def unordered(self, path: Path, members: Any) -> None:
        if not isinstance(members, frozenset):
            self.found.containers.append(members)
        for held in members:
            self.meet((path, "{...}"), held)
        self._subclass(path, members)

    def _subclass(self, path: Path, container: Any) -> None:
        if type(container).__module__ not in ("builtins", "collections"):
            self.instance(path, container)

    def function(self, path: Path, function: types.FunctionType) -> None:
        if is_dynamo_wrapper(function):
            self.meet(path, vars(function)["__wrapped__"])
            return
        top = top_package(function)
        if top in LIBRARIES and top != "ftrain":
            return
        code = function.__code__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if id(cell) in self.found.paths:
                continue
            held = cell_contents(cell)
            own = (None, name)
            self.found.paths[id(cell)] = own
            # A name that this function never binds may be rebound from outside: then the new content
            # must be found, unless it is of a type that holds no objects.
            empty = type(held) in ATOMS or isinstance(held, (type, *CODE))
            if isinstance(held, type):
                self.found.classes.append(held)
            if name in names_bound(code) or not empty:
                self.found.cells.append(cell)
            else:
                self.found._alive.append(cell)
            self.meet(own, held)
        for held in (function.__defaults__, function.__kwdefaults__, vars(function) or None):
            self.meet(path, held)
        if self._follow_globals and top != "ftrain":
            self.globals(function)

    def globals(self, function: types.FunctionType) -> None:
        scope = function.__globals__
        read = sorted(names_read(function.__code__))
        self._view_globals(scope, [name for name in read if name in scope])
        for name in read:
            module = scope.get(name)
            if isinstance(module, types.ModuleType) and top_package(module) not in LIBRARIES:
                self._view_globals(vars(module), [x for x in read if x in vars(module)])

    def _view_globals(self, scope: dict[str, Any], names: list[str]) -> None:
        self.found.classes += [scope[name] for name in names if isinstance(scope[name], type)]
        watched = tuple(
            name for name in names if not isinstance(scope[name], (type, types.ModuleType))
        )
        if watched:
            self.found.views.append(view := Globals(scope, watched))
            self.found._alive.append(view)
            self.found.paths[id(view)] = (None, "")
            for name in watched:
                self.meet((None, name), scope[name])

    def method(self, path: Path, method: types.MethodType) -> None:
        self.meet(path, method.__self__)
        self.meet(path, method.__func__)

    def descriptor(self, path: Path, descriptor: Any) -> None:
        for name in ("__func__", "fget", "fset", "fdel", "func", "__wrapped__"):
            self.meet(path, getattr(descriptor, name, None))

    def partial(self, path: Path, partial: functools.partial[Any]) -> None:
        for held in (partial.func, partial.args, partial.keywords):
            self.meet(path, held)
        self.instance(path, partial)

    def cache(self, path: Path, cache: Any) -> None:
        self.found.caches.append(cache)
        self.meet(path, getattr(cache, "__wrapped__", None))

    def buffer(self, path: Path, buffer: Any) -> None:
        array = isinstance(buffer, np.ndarray)
        size = buffer.nbytes if array else len(memoryview(buffer).cast("B"))
        if size <= LARGE_ARRAY and not (array and not buffer.flags.writeable):
            self.found.buffers.append(buffer)
        if array and buffer.dtype == object and size <= LARGE_ARRAY:
            for held in buffer.flat:
                self.meet((path, "[...]"), held)


_VISITS: tuple[tuple[Any, Callable[..., None]], ...] = (
    (torch.Tensor, lambda walk, path, tensor: walk.found.tensors.append((path, tensor))),
    (nn.Module, _Walk.module),
    (dict, _Walk.mapping),
    ((list, collections.deque, tuple), _Walk.sequence),
    ((set, frozenset), _Walk.unordered),
    (types.FunctionType, _Walk.function),
    (types.MethodType, _Walk.method),
    (functools.partial, _Walk.partial),
    (type(functools.lru_cache(len)), _Walk.cache),
    (CODE, _Walk.descriptor),
    (GENERATORS, lambda walk, _, generator: walk.found.generators.append(generator)),
    ((np.ndarray, bytearray, array.array), _Walk.buffer),
    (io.IOBase, lambda walk, _, stream: walk.found.iterators.append(stream)),
    ((enum.Enum, np.generic), lambda *_: None),  # they hold no user objects
)
