"""Reading, comparing and restoring the contents of Python objects, many at a time.

Contents are compared by identity, so replacing `1` by `True`, or a tensor by an equal one, is a change.
Comparing thousands of entries takes a few calls of C functions (30 ns per entry).
"""

from __future__ import annotations

import bisect
import collections
import itertools
import operator
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from ftrain.core._reachable_objects import MISSING, Attributes, Class, Found, Globals

__all__ = [
    "Change", "Group", "emptied", "empty_of", "groups_of", "put_all", "put_set", "without_graphs",
]  # fmt: skip

_chain = itertools.chain.from_iterable
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})


class Change(NamedTuple):
    """Changed contents of an object, read before its former contents were restored.

    Attributes:
        node: the object.
        keys: its keys after the change, if it has keys.
        values: its values after the change.
        put: `put(node, keys, values)` writes keys and values into an object.
    """

    node: Any
    keys: list[Any] | None
    values: list[Any]
    put: Callable[[Any, Any, Any], None]


class _Kind(NamedTuple):
    """Functions that read and replace the contents of one kind of object (dict, list, cell, ...).

    Attributes:
        size: a number that changes if entries are added or removed.
        keys: the keys of an object, in order, for kinds that have keys.
        values: its values, in order.
        put: replaces both.
        strings: True if the keys are strings, which may be compared by value (six times as fast).
    """

    size: Callable[[Any], int]
    keys: Callable[[Any], Iterable[Any]] | None
    values: Callable[[Any], Iterable[Any]]
    put: Callable[[Any, Any, Any], None]
    strings: bool = False


class Group:
    """Objects of one kind, with the contents that they had when the group was made."""

    def __init__(self, kind: _Kind, nodes: list[Any]) -> None:
        self._kind, self._nodes = kind, nodes
        self._sizes = [*map(kind.size, nodes)]
        self._keys = [*_chain(map(kind.keys, nodes))] if kind.keys else []
        contents = [list(kind.values(node)) for node in nodes]
        self._values = [*_chain(contents)]
        self._starts = [0, *itertools.accumulate(map(len, contents))]

    def same(self) -> bool:
        """Return True if each object of the group still has its recorded contents."""
        kind, nodes = self._kind, self._nodes
        if [*map(kind.size, nodes)] != self._sizes:
            return False
        if kind.strings:
            assert kind.keys is not None
            if [*_chain(map(kind.keys, nodes))] != self._keys:
                return False
        elif kind.keys is not None and not _identical(_chain(map(kind.keys, nodes)), self._keys):
            return False
        return _identical(_chain(map(kind.values, nodes)), self._values)

    def restore(self) -> list[Change]:
        """Restore every object that changed; return the contents that were replaced."""
        kind, nodes = self._kind, self._nodes
        sizes = [*map(kind.size, nodes)]
        # Objects of changed size are restored first: then all entries have their original positions, so
        # that differences can be assigned to objects.
        changes = [self._put(place) for place in _places(operator.ne, sizes, self._sizes)]
        differing: list[int] = []
        if kind.keys is not None:
            differing += _places(operator.is_not, _chain(map(kind.keys, nodes)), self._keys)
        differing += _places(operator.is_not, _chain(map(kind.values, nodes)), self._values)
        owners = sorted({self._owner(entry) for entry in differing})
        return changes + [self._put(place) for place in owners]

    def adopt_plain(self) -> bool:
        """Accept changed numbers and strings as new contents; return False if anything else changed."""
        kind, nodes = self._kind, self._nodes
        if [*map(kind.size, nodes)] != self._sizes:
            return False
        if kind.keys is not None and not _identical(_chain(map(kind.keys, nodes)), self._keys):
            return False
        values = [*_chain(map(kind.values, nodes))]
        for entry in _places(operator.is_not, values, self._values):
            if not {type(values[entry]), type(self._values[entry])} <= _PLAIN:
                return False
        self._values = values
        return True

    def _put(self, place: int) -> Change:
        change = _read(self._kind, self._nodes[place])
        here = slice(self._starts[place], self._starts[place + 1])
        self._kind.put(change.node, self._keys[here], self._values[here])
        return change

    def _owner(self, entry: int) -> int:
        """Return the index of the object that holds this entry of the concatenated contents."""
        return bisect.bisect_right(self._starts, entry) - 1


def _identical(xs: Iterable[Any], ys: Iterable[Any]) -> bool:
    return all(map(operator.is_, xs, ys))


def _places(differ: Callable[[Any, Any], Any], xs: Iterable[Any], ys: Iterable[Any]) -> list[int]:
    return [*itertools.compress(itertools.count(), map(differ, xs, ys))]


def groups_of(found: Found) -> list[Group]:
    """Group the objects in `found` by kind (dict, list, cell, ...), without the empty containers."""
    of_kind: dict[_Kind, list[Any]] = {}
    for container in found.containers:
        if type(container) in _EMPTY and not container:
            continue
        for base, kind in _CONTAINERS:
            if isinstance(container, base):
                of_kind.setdefault(kind, []).append(container)
                break
    for view in found.views:
        of_kind.setdefault(_VIEWS[type(view)], []).append(view)
    pairs: list[tuple[_Kind, list[Any]]] = [(_INSTANCE, found.instances), (_CELL, found.cells)]
    pairs += of_kind.items()
    return [Group(kind, nodes) for kind, nodes in pairs if nodes]


def empty_of(found: Found) -> list[Any]:
    """Return a list of the empty containers; `any(list)` is True once one of them has been filled.

    Most containers of a module are empty (such as its hooks), and one call of `any` checks all of them.
    """
    return [node for node in found.containers if type(node) in _EMPTY and not node]


def emptied(node: Any) -> Change:
    """Empty a container that was empty before a call; return the contents that the call put into it."""
    if isinstance(node, set):
        change = Change(node, None, list(node), put_set)
        node.clear()
        return change
    kind = next(kind for base, kind in _CONTAINERS if isinstance(node, base))
    change = _read(kind, node)
    node.clear()
    return change


def put_all(changes: Iterable[Change]) -> None:
    """Make changes again that were undone."""
    for change in changes:
        change.put(change.node, change.keys, change.values)


def without_graphs(change: Change) -> Change:
    """Return a change whose tensors have no graph, so that nothing in a graph refers to the graph."""
    return change._replace(values=[*map(_leaf_of, change.values)])


def _leaf_of(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.is_leaf:
        return value
    return value.detach().requires_grad_()


def put_set(node: set[Any], _: Any, values: Any) -> None:
    """Replace the elements of a set."""
    set.clear(node)
    set.update(node, values)


def _read(kind: _Kind, node: Any) -> Change:
    if isinstance(node, Class):  # names set since the record are included
        names = [*node.names, *(vars(node.cls).keys() - node.known)]
        return Change(node, names, [vars(node.cls).get(name, MISSING) for name in names], kind.put)
    keys = list(kind.keys(node)) if kind.keys else None
    return Change(node, keys, list(kind.values(node)), kind.put)


def _put_dict(node: dict[Any, Any], keys: Any, values: Any) -> None:
    dict.clear(node)
    dict.update(node, zip(keys, values, strict=True))


def _put_ordered(node: collections.OrderedDict[Any, Any], keys: Any, values: Any) -> None:
    collections.OrderedDict.clear(node)
    for key, value in zip(keys, values, strict=True):
        collections.OrderedDict.__setitem__(node, key, value)


def _put_list(node: list[Any], _: Any, values: Any) -> None:
    list.__setitem__(node, slice(None), values)


def _put_deque(node: collections.deque[Any], _: Any, values: Any) -> None:
    collections.deque.clear(node)
    collections.deque.extend(node, values)


def _read_cell(cell: types.CellType) -> tuple[Any]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # the cell is empty
        return (MISSING,)


def _put_cell(cell: types.CellType, _: Any, values: Any) -> None:
    (value,) = values
    if value is not MISSING:
        cell.cell_contents = value
    elif _read_cell(cell)[0] is not MISSING:
        del cell.cell_contents


def _read_attributes(view: Attributes) -> list[Any]:
    return [getattr(view.instance, name, MISSING) for name in view.names]


def _put_attributes(view: Attributes, _: Any, values: Any) -> None:
    for name, now, value in zip(view.names, _read_attributes(view), values, strict=True):
        if value is not MISSING:
            object.__setattr__(view.instance, name, value)
        elif now is not MISSING:
            object.__delattr__(view.instance, name)


def _put_class(view: Class, names: Any, values: Any) -> None:
    wanted = dict(zip(names or view.names, values, strict=True))
    for name in [*wanted, *(vars(view.cls).keys() - view.known - wanted.keys())]:
        now, value = vars(view.cls).get(name, MISSING), wanted.get(name, MISSING)
        if value is MISSING and now is not MISSING:
            type.__delattr__(view.cls, name)
        elif value is not now:
            type.__setattr__(view.cls, name, value)


def _put_globals(view: Globals, _: Any, values: Any) -> None:
    view.scope.update(zip(view.names, values, strict=True))


def _one(_: Any) -> int:
    return 1


_OrderedDict = collections.OrderedDict
_EMPTY = frozenset({dict, _OrderedDict, collections.defaultdict, list, collections.deque, set})
_INSTANCE = _Kind(len, dict.keys, dict.values, _put_dict, strings=True)
_CELL = _Kind(_one, None, _read_cell, _put_cell)
# These are methods of the base classes, because a subclass may override them.
_CONTAINERS: tuple[tuple[type, _Kind], ...] = (
    (_OrderedDict, _Kind(dict.__len__, _OrderedDict.keys, _OrderedDict.values, _put_ordered)),
    (dict, _Kind(dict.__len__, dict.keys, dict.values, _put_dict)),
    (list, _Kind(list.__len__, None, list.__iter__, _put_list)),
    (
        collections.deque,
        _Kind(collections.deque.__len__, None, collections.deque.__iter__, _put_deque),
    ),
)
_VIEWS: dict[type, _Kind] = {
    Attributes: _Kind(_one, None, _read_attributes, _put_attributes),
    Class: _Kind(lambda view: len(vars(view.cls)), None, Class.read, _put_class),
    Globals: _Kind(
        _one, None, lambda view: [view.scope.get(name) for name in view.names], _put_globals
    ),
}
