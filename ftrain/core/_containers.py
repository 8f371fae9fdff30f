"""Container classes of other libraries as tree nodes, registered when an instance is first seen.

optree knows dict, list, tuple, NamedTuple, deque and the registered classes; an instance of any other
class is a leaf. Mappings (`UserDict`, Hugging Face's `BatchEncoding`, `TensorDict`), dataclasses and
subclasses of dict, list or tuple contain tensors as a dict does, so this module registers them as nodes,
in optree and in torch's pytree, with the same order of leaves. Rebuilding a node makes a new instance of
the same class with the same attributes; `__init__` does not run.

Read next: `tree.py`, which calls `settle` on the leaves that it finds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import OrderedDict, UserDict, UserList
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import optree
import torch

from ftrain.core import _torch_pytree as torch_pytree
from ftrain.core._instances import (
    ContainerError,
    Flatten,
    Unflatten,
    Withheld,
    attributes_of,
    functions,
)
from ftrain.core._words import a_or_an

__all__ = ["LEAVES", "NAMESPACE", "register", "settle", "tensor_attribute", "with_item"]

NAMESPACE = "ftrain"

# Classes whose instances are leaves. Each class is inspected once, and leaf classes are added.
LEAVES: set[type] = {
    torch.Tensor,
    torch.nn.Parameter,
    torch.Size,
    Withheld,
    *(bool, int, float, complex, str, bytes, object),
}
_lock = threading.RLock()


def settle(leaves: Iterable[Any]) -> bool:
    """Register as tree nodes the classes of leaves that are containers; return True if there are any.

    Raises:
        ContainerError: one holds tensors and cannot be rebuilt.
    """
    found = False
    for leaf in leaves:
        cls = type(leaf)
        if cls in LEAVES:
            continue
        with _lock:
            if cls in LEAVES:
                continue
            if not optree.tree_is_leaf(leaf, namespace=NAMESPACE):  # registered by another thread
                found = True
                continue
            kind = _kind_of(leaf)
            if kind is None:
                LEAVES.add(cls)
            elif kind is not _KEEP:
                kind(cls)
                found = True
    return found


def tensor_attribute(leaf: Any) -> str | None:
    """Return the name of a leaf's first attribute that contains tensors; `None` if there is none.

    Callable leaves (functions, modules) are skipped, because they read their tensors when called.
    """
    if callable(leaf) or isinstance(leaf, (type, torch.Tensor)):
        return None
    # A SimpleNamespace has its `__dict__` in a slot.
    attributes = (pair for pair in attributes_of(leaf) if pair[0] != "__dict__")
    return next((name for name, x in attributes if _holds_tensors(x)), None)


def with_item(mapping: Any, key: Any, value: Any) -> Any:
    """Return a mapping of the same class with one item added or replaced."""
    flat = optree.tree_flatten_one_level(mapping, namespace=NAMESPACE)
    children: list[Any] = list(flat[0])
    metadata, entries, unflatten = flat[1:4]
    if isinstance(mapping, MutableMapping):
        again: Any = unflatten(metadata, children)
        again[key] = value
        return again
    content = entries.index("")
    children[content] = with_item(children[content], key, value)
    return unflatten(metadata, children)


def register(
    cls: type,
    flatten: Flatten,
    unflatten: Unflatten,
    entry: type[optree.PyTreeEntry],
) -> None:
    """Register `cls` as a tree node with optree and, if necessary, with torch's pytree.

    torch's pytree keeps the insertion order of a dict, while optree sorts its keys, so leaves of one
    must never be combined with a structure of the other. Here the torch node has optree's leaves as its
    children, so that both have the same order.
    """
    optree.register_pytree_node(cls, flatten, unflatten, path_entry_type=entry, namespace=NAMESPACE)
    if cls in torch_pytree.SUPPORTED_NODES:
        return

    def to_torch(node: Any) -> tuple[list[Any], Any]:
        while settle(optree.tree_leaves(node, namespace=NAMESPACE)):
            pass
        # None is a leaf, as in torch, so that prefix trees such as `in_dims` of vmap can contain it.
        return optree.tree_flatten(node, none_is_leaf=True, namespace=NAMESPACE)

    def from_torch(children: Iterable[Any], treedef: Any) -> Any:
        return optree.tree_unflatten(treedef, children)

    def with_keys(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
        leaves, treedef = to_torch(node)
        paths = (accessor.codify("") for accessor in treedef.accessors())
        keys = [torch_pytree.GetAttrKey(path.removeprefix(".")) for path in paths]
        return list(zip(keys, leaves, strict=True)), treedef

    torch_pytree.register_pytree_node(
        cls,
        to_torch,
        from_torch,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=with_keys,
    )


class _Attribute(optree.PyTreeEntry):
    """Path entry of an attribute, formatted as `.name`; an empty name adds nothing to the path."""

    __slots__ = ()

    def __call__(self, node: Any) -> Any:
        return getattr(node, self.entry) if self.entry else node

    def codify(self, node: str = "") -> str:
        return f"{node}.{self.entry}" if self.entry else node


class _Written(optree.PyTreeEntry):
    """Path entry given as finished text, such as `['x']`."""

    __slots__ = ()

    def codify(self, node: str = "") -> str:
        return f"{node}{self.entry}"


# Marks a mapping without tensors that cannot be rebuilt: it is a leaf, but its class is not.
_KEEP = object()


def _kind_of(value: Any) -> Any:
    """Return the function that registers the class of `value`; `None` if `value` is a leaf."""
    cls: Any = type(value)
    if isinstance(value, (torch.Tensor, torch.nn.Module, type, torch.utils.data.Dataset)):
        return None
    if issubclass(cls, (dict, UserDict, list, UserList)) or _is_tuple(cls):
        return _register_plain
    if cls in torch_pytree.SUPPORTED_NODES:
        return _adopt
    if isinstance(value, Mapping):
        return _mapping_kind(value)
    if hasattr(cls, "__dataclass_fields__") and _is_plain_object(cls):
        return _register_dataclass
    return None


def _is_plain_object(cls: type) -> bool:
    """Return True if a class has no base written in C: its instances hold values in attributes only."""
    try:
        object.__new__(cls)
    except TypeError:  # the class derives from one written in C
        return False
    return True


def _is_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and cls is not torch.Size


def _mapping_kind(value: Mapping[Any, Any]) -> Any:
    """Return the function that registers, as a tree node, the class of a mapping other than a dict.

    The function depends on how an instance can be rebuilt with other tensors: by the attribute that
    holds its items, or by a call of the class with a dict. `_KEEP` marks a mapping that can be rebuilt
    in neither way and holds no tensors, and so remains a leaf.

    Raises:
        ContainerError: the mapping holds tensors and cannot be rebuilt.
    """
    cls: Any = type(value)
    items = list(value.items())
    for name, attribute in attributes_of(value):
        if isinstance(attribute, Mapping) and _same_items(attribute.items(), items):
            return lambda cls: _register_attributes(cls, content=name)
    with contextlib.suppress(Exception):
        again = cls(dict(items))
        if type(again) is cls and _same_items(again.items(), items):
            return _register_constructor
    if not _holds_tensors(dict(items)):
        return _KEEP
    raise ContainerError(
        value,
        f"is {a_or_an(cls.__name__)}, a mapping that cannot be rebuilt with other tensors: its "
        f"items are in no attribute, and {cls.__name__}(dict(x)) is not equal to x. Pass "
        "dict(x) instead, or register the class with torch.utils._pytree.register_pytree_node.",
    )


def _same_items(xs: Iterable[tuple[Any, Any]], ys: Iterable[tuple[Any, Any]]) -> bool:
    one, two = list(xs), list(ys)
    return len(one) == len(two) and all(
        a is c and b is d for (a, b), (c, d) in zip(one, two, strict=True)
    )


def _register_constructor(cls: Any) -> None:
    register(
        cls,
        lambda node: ((dict(node.items()),), None, ("",)),
        lambda _, children: cls(children[0]),
        _Attribute,
    )


def _adopt(cls: Any) -> None:
    """Register with optree a class that torch's pytree knows, such as `TensorDict`."""
    node_def = torch_pytree.SUPPORTED_NODES[cls]

    def flatten(node: Any) -> tuple[tuple[Any, ...], Any, tuple[Any, ...]]:
        children, context = node_def.flatten_fn(node)
        entries: tuple[Any, ...] = tuple(f"[{i}]" for i in range(len(children)))
        if node_def.flatten_with_keys_fn is not None:
            keyed, _ = node_def.flatten_with_keys_fn(node)
            entries = tuple(str(key) for key, _ in keyed)
        return tuple(children), _Context(context), entries

    register(
        cls,
        flatten,
        lambda context, children: node_def.unflatten_fn(list(children), context.value),
        _Written,
    )


class _Context:
    """Context of a torch pytree node, with a text for messages."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]  # optree does not hash the metadata of nodes

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Context) and bool(self.value == other.value)

    def __repr__(self) -> str:
        return repr(self.value)


def _register_plain(cls: type) -> None:
    """Register a subclass of dict, list, tuple, UserDict or UserList."""
    if issubclass(cls, (UserDict, UserList)):
        _register_attributes(cls, content="data")
    else:
        base = next(b for b in (OrderedDict, dict, list, tuple) if issubclass(cls, b))
        _register_attributes(cls, base=base)


def _register_dataclass(cls: Any) -> None:
    _register_attributes(cls, fields=tuple(field.name for field in dataclasses.fields(cls)))


def _register_attributes(cls: Any, **how: Any) -> None:
    register(cls, *functions(cls, _holds_tensors, **how), _Attribute)


def _holds_tensors(value: Any) -> bool:
    while True:
        leaves = optree.tree_leaves(value, namespace=NAMESPACE)
        if not settle(leaves):
            return any(isinstance(leaf, torch.Tensor) for leaf in leaves)
