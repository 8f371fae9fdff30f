"""Flattening of a Python object to its tensors, and rebuilding of it, attribute by attribute.

A new instance gets the attributes of the old one, with other tensors; `__init__` does not run.
Attributes that are Python constants are part of the structure. Other attributes, such as a tokenizer's
encodings, are passed on unchanged, except inside `withheld`, because there they would belong to another
batch.

Read next: `_containers.py`, which selects the classes whose instances are rebuilt in this way.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import enum
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch

from ftrain.core._words import a_or_an

__all__ = [
    "ContainerError",
    "Flatten",
    "Unflatten",
    "Withheld",
    "attributes_of",
    "functions",
    "withheld",
]

Flatten = Callable[[Any], tuple[tuple[Any, ...], Any, tuple[Any, ...]]]
Unflatten = Callable[[Any, Any], Any]

_withheld: contextvars.ContextVar[str | None] = contextvars.ContextVar("withheld", default=None)


class ContainerError(TypeError):
    """Error for a container that cannot be rebuilt with other tensors; the caller adds its path."""

    def __init__(self, container: Any, why: str) -> None:
        super().__init__(why)
        self.container = container


@contextlib.contextmanager
def withheld(where: str) -> Iterator[None]:
    """In the context, keep only tensors and constants as attributes of rebuilt containers.

    A compiled program is called with other batches than the traced one, and a micro-batch has other rows
    than its batch, so such an attribute (the encodings in a `BatchEncoding`) would belong to another
    batch. Any use of it raises.

    Args:
        where: the context, as named in the error: "a compiled function".
    """
    token = _withheld.set(where)
    try:
        yield
    finally:
        _withheld.reset(token)


def functions(
    cls: Any,
    holds_tensors: Callable[[Any], bool],
    *,
    content: str | None = None,
    base: Any = None,
    fields: tuple[str, ...] = (),
) -> tuple[Flatten, Unflatten]:
    """Return functions that flatten and rebuild the instances of a class, attribute by attribute.

    Args:
        cls: the class.
        holds_tensors: returns True for a value that has a tensor among its leaves.
        content: the attribute that holds the items of a mapping or sequence.
        base: the built-in container class from which `cls` derives, if it stores the items itself.
        fields: attributes that are always children.
    """
    slots = _slots(cls)
    new: Callable[..., Any] = (object if base is None else base).__new__
    bare = _Shell(fields if content is None else (content,))

    def flatten(node: Any) -> tuple[tuple[Any, ...], Any, tuple[Any, ...]]:
        items = None if base is None else _content(base, node)
        attributes = dict(attributes_of(node, slots))
        children: dict[str, Any] = {n: attributes.pop(n) for n in fields if n in attributes}
        if content is not None:
            if content not in attributes:
                raise ContainerError(
                    node,
                    f"is {a_or_an(cls.__name__)} without its attribute {content!r}, which must hold "
                    "the items of the container. Assign it in __init__.",
                )
            children[content] = attributes.pop(content)
        shell = bare
        if attributes or len(children) < len(bare.children):
            shell = _sorted_out(attributes, items, children, holds_tensors)
        steps = ["" if name == content else name for name in children]
        metadata = None if shell is bare else shell
        if base is None:
            return tuple(children.values()), metadata, tuple(steps)
        return (items, *children.values()), metadata, ("", *steps)

    def unflatten(shell: Any, children: Any) -> Any:
        shell = bare if shell is None else shell
        values = list(children)
        items: Any = values.pop(0) if base is not None else None
        node = new(cls, items) if base is tuple else new(cls)
        attributes = dict(zip(shell.children, values, strict=True))
        attributes |= {name: value for name, _, value in shell.constants}
        attributes |= {name: items[name] for name in shell.linked}
        attributes |= _opaque(shell.opaque, cls)
        _fill(base, node, items)
        if attributes.pop(_ITSELF, False):
            object.__setattr__(node, "__dict__", node)
        for name, value in attributes.items():
            if name in slots:
                slots[name].__set__(node, value)
            else:
                object.__getattribute__(node, "__dict__")[name] = value
        return node

    return flatten, unflatten


@dataclasses.dataclass(frozen=True, eq=False)
class _Shell:
    """Static data of a flattened instance: all attributes and items without tensors.

    Attributes:
        children: names of the attributes that are children, in their order.
        linked: names of the attributes that repeat an item, as in a `ModelOutput`.
        constants: names, types and values of the attributes that are Python constants.
        opaque: all other attributes by name, which pass unchanged to the rebuilt instance. Comparisons
            of two structures ignore their values.
    """

    children: tuple[str, ...]
    linked: tuple[str, ...] = ()
    constants: tuple[tuple[str, type, Any], ...] = ()
    opaque: dict[str, Any] = dataclasses.field(default_factory=dict)

    __hash__ = None  # type: ignore[assignment]  # optree does not hash the metadata of nodes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shell) and self._key() == other._key()

    def _key(self) -> tuple[Any, ...]:
        constants = tuple(
            (name, kind, value if kind in _COMPARED else _exactly(value))
            for name, kind, value in self.constants
        )
        return self.children, self.linked, constants, tuple(sorted(self.opaque))

    def __repr__(self) -> str:
        """Return the constants as text, for messages about structures with different constants."""
        return ", ".join(f"{name}={value!r}" for name, _, value in self.constants)


class Withheld:
    """Placeholder for an omitted attribute of a rebuilt container; raises if its contents are read."""

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        object.__setattr__(self, "_why", why)

    def _raise(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(object.__getattribute__(self, "_why"))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # a protocol method, which Python may look up without using it
            raise AttributeError(name)
        self._raise()

    __bool__ = __call__ = __contains__ = __getitem__ = __iter__ = __len__ = _raise
    __delitem__ = __next__ = __setattr__ = __setitem__ = _raise


_ITSELF = "__dict__"  # for a dict whose items are also its attributes: self.__dict__ = self


def _content(base: Any, node: Any) -> Any:
    """Return the items of an instance of a dict, list or tuple subclass; call no overridden method."""
    if base is OrderedDict:
        return OrderedDict((key, dict.__getitem__(node, key)) for key in OrderedDict.__iter__(node))
    if base is dict:
        return dict(zip(dict.keys(node), dict.values(node), strict=True))
    return base(base.__iter__(node))


def _fill(base: Any, node: Any, items: Any) -> None:
    if base in (dict, OrderedDict):
        for key, value in items.items():
            base.__setitem__(node, key, value)
    elif base is list:
        list.extend(node, items)


def _sorted_out(
    attributes: dict[str, Any],
    items: Any,
    children: dict[str, Any],
    holds_tensors: Callable[[Any], bool],
) -> _Shell:
    """Add the attributes that hold tensors to `children`; return all other attributes as static data.

    Args:
        attributes: the attributes of an instance, by name.
        items: the items of an instance of a dict, list or tuple subclass. An attribute that repeats an
            item of a dict is recorded by name only.
        children: receives the attributes that hold tensors.
        holds_tensors: True for a value that is or contains a tensor.
    """
    linked: list[str] = []
    constants: list[tuple[str, type, Any]] = []
    opaque: dict[str, Any] = {}
    for name in sorted(attributes):
        value = attributes[name]
        if isinstance(items, dict) and name in items and items[name] is value:
            linked.append(name)
        elif _is_constant(value):
            constants.append((name, type(value), value))
        elif holds_tensors(value):
            children[name] = value
        else:
            opaque[name] = value
    return _Shell(tuple(children), tuple(linked), tuple(constants), opaque)


def _opaque(opaque: dict[str, Any], cls: type) -> dict[str, Any]:
    where = _withheld.get()
    if where is None or not opaque:
        return opaque
    return {
        name: Withheld(
            f"`{name}` of {a_or_an(cls.__name__)} is {a_or_an(type(value).__name__)}, and cannot be "
            f"used in {where}: its value would be that of another batch. Compute what is needed from it "
            "where the batch is made, and put that into the batch as a tensor."
        )
        for name, value in opaque.items()
    }


def _is_constant(value: Any) -> bool:
    if isinstance(value, (tuple, frozenset)):
        return type(value) in (tuple, frozenset, torch.Size) and all(map(_is_constant, value))
    return isinstance(value, (type, enum.Enum)) or type(value) in _CONSTANTS


def _exactly(value: Any) -> Any:
    """Return a key of a constant, equal only for constants of one type that no program distinguishes.

    NaN equals NaN, 0.0 differs from -0.0, and (1,) from (1.0,).
    """
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, complex):
        return value.real.hex(), value.imag.hex()
    if isinstance(value, (tuple, frozenset)):
        parts = ((type(x), _exactly(x)) for x in value)
        return frozenset(parts) if isinstance(value, frozenset) else tuple(parts)
    return value


# Classes of constants of which two are the same if they are equal.
_COMPARED = {
    *(type(None), bool, int, str, bytes),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
}
_CONSTANTS = {*_COMPARED, float, complex}


def attributes_of(node: Any, slots: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Any]]:
    """Return the attributes and slots of an instance with their names, without using `__getattr__`."""
    for name, member in (_slots(type(node)) if slots is None else slots).items():
        with contextlib.suppress(AttributeError):  # the slot is empty
            yield name, member.__get__(node)
    try:
        own = object.__getattribute__(node, "__dict__")
    except AttributeError:
        return
    if own is node:
        yield _ITSELF, True
    else:
        yield from own.items()


def _slots(cls: type) -> dict[str, Any]:
    """Return the descriptors of the slots of a class and its bases."""
    return {
        name: member
        for base in reversed(cls.__mro__)
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
    }
