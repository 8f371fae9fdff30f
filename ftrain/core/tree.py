"""Trees: nested containers of tensors.

A tree is any nesting of mappings, lists, tuples, NamedTuples and dataclasses. Its leaves have one
canonical order (dict keys sorted), in optree and in `torch.utils._pytree`, so that `ftrain.compile`,
`torch.vmap` and checkpoints use the same order. Mappings of any class are nodes (`UserDict`, Hugging
Face's `BatchEncoding`, `TensorDict`), and so are dataclasses: `_containers.py` registers a class when it
finds the first instance.

Read next: `state.py`, the most important tree.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, dataclass_transform

import optree
import torch

from ftrain.core._containers import LEAVES, NAMESPACE, register, settle, with_item
from ftrain.core._instances import ContainerError, withheld
from ftrain.core._leaf_digest import leaf_digest, row_major
from ftrain.core._words import a_or_an

__all__ = [
    "NAMESPACE",
    "digest",
    "digests",
    "find",
    "first_difference",
    "flatten",
    "is_leaf",
    "leaves",
    "map",
    "nbytes",
    "one_level",
    "paths",
    "register_dataclass",
    "structure",
    "unflatten",
    "with_item",
    "withheld",
]

PyTree = Any
TreeDef = optree.PyTreeSpec
_C = TypeVar("_C", bound=type)


def flatten(tree: PyTree) -> tuple[list[Any], TreeDef]:
    """Return the leaves of a tree in canonical order, and the structure that holds them.

    >>> leaves, treedef = flatten({"b": torch.zeros(2), "a": torch.ones(1)})
    >>> [tuple(leaf.shape) for leaf in leaves]
    [(1,), (2,)]
    """
    try:
        leaves, treedef = optree.tree_flatten(tree, namespace=NAMESPACE)
        # The test takes 5 µs for 300 leaves, 8 % of the time to flatten them.
        if not LEAVES.issuperset(builtins.map(type, leaves)):
            while settle(leaves):
                leaves, treedef = optree.tree_flatten(tree, namespace=NAMESPACE)
    except ContainerError as error:
        raise TypeError(f"{_path_to(error.container, tree)} {error}") from None
    return leaves, treedef


def unflatten(treedef: TreeDef, leaves: Iterable[Any]) -> PyTree:
    """Return the tree with structure `treedef` and leaves `leaves`: the inverse of `flatten`."""
    return optree.tree_unflatten(treedef, leaves)


def leaves(tree: PyTree) -> list[Any]:
    """Return the leaves of a tree in canonical order (dict keys sorted)."""
    return flatten(tree)[0]


def structure(tree: PyTree) -> TreeDef:
    """Return the structure of a tree without its leaves, hashable and comparable."""
    return flatten(tree)[1]


def map(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Apply `fn` leaf by leaf to one or several trees of the same structure.

    Raises:
        ValueError: the structures differ; the message names the first differing path.

    >>> map(lambda a, b: a + b, {"x": 1, "y": (2, 3)}, {"x": 10, "y": (20, 30)})
    {'x': 11, 'y': (22, 33)}
    """
    flat, treedef = flatten(tree)
    columns: list[Sequence[Any]] = [flat]
    for other in rest:
        other_leaves, other_def = flatten(other)
        if other_def != treedef:
            raise ValueError(
                f"trees differ in structure, {first_difference(other, tree)}. Pass trees with the same "
                "structure."
            )
        columns.append(other_leaves)
    return unflatten(treedef, [fn(*row) for row in zip(*columns, strict=True)])


def paths(tree: PyTree) -> list[str]:
    """Return the path of each leaf, as a Python expression that reaches it, in the order of `leaves`.

    >>> paths({"w": 0, "layers": [1, (2, 3)]})
    ["['layers'][0]", "['layers'][1][0]", "['layers'][1][1]", "['w']"]
    """
    return [accessor.codify("") for accessor in structure(tree).accessors()]


def is_leaf(tree: PyTree) -> bool:
    """Return True if `tree` is a leaf; `None` is a node without leaves."""
    return type(tree) in LEAVES or structure(tree).is_leaf()


def one_level(tree: PyTree) -> dict[str, Any]:
    """Return the children of a node by path, in canonical order; an empty dict for a leaf.

    >>> one_level({"b": 1, "a": (2, 3)})
    {"['a']": (2, 3), "['b']": 1}
    """
    if is_leaf(tree):
        return {}
    accessors, children, _ = optree.tree_flatten_with_accessor(
        tree, is_leaf=lambda node: node is not tree, namespace=NAMESPACE
    )
    return {a.codify(""): child for a, child in zip(accessors, children, strict=True)}


def first_difference(got: PyTree, expected: PyTree, path: str = "") -> str | None:
    """Describe the first difference in structure of two trees; `None` if they agree.

    >>> first_difference({"a": 1, "b": (2, 3)}, {"a": 1, "b": (2,)})
    "at ['b']: expected a tuple of 1 entries, got 2"
    """
    if structure(expected) == structure(got):
        return None
    where = f"at {path}" if path else "at the root"
    if is_leaf(expected) or is_leaf(got) or type(expected) is not type(got):
        return f"{where}: expected {_kind(expected)}, got {_kind(got)}"
    ours, theirs = one_level(expected), one_level(got)
    for key, child in ours.items():
        if key not in theirs:
            if isinstance(expected, dict):
                return f"{where}: {key} is missing"
            return (
                f"{where}: expected {a_or_an(type(expected).__name__)} of {len(ours)} entries, "
                f"got {len(theirs)}"
            )
        deeper = first_difference(theirs[key], child, path + key)
        if deeper is not None:
            return deeper
    extra = [key for key in theirs if key not in ours]
    if extra and isinstance(expected, dict):
        return f"{where}: {extra[0]} was not expected"
    if extra:
        return (
            f"{where}: expected {a_or_an(type(expected).__name__)} of {len(ours)} entries, "
            f"got {len(theirs)}"
        )
    name = a_or_an(type(expected).__name__)
    return f"{where}: expected {name} with {_constants(expected)}, got one with {_constants(got)}"


def find(tree: PyTree, name: str) -> dict[str, Any]:
    """Return `{path: leaf}` for the leaves in every field called `name`.

    A training step finds the learning rate in any optimizer state with it.

    >>> find({"a": {"rate": 1.0}, "b": 2.0}, "rate")
    {"['a']['rate']": 1.0}
    """
    flat, treedef = flatten(tree)
    return {path: flat[index] for index, path in _places(treedef, name)}


def nbytes(tree: PyTree) -> int:
    """Return the number of bytes of a tree's tensors, each distinct storage counted once."""
    storages = {}
    for leaf in leaves(tree):
        storage = leaf.untyped_storage()
        storages[storage.data_ptr() or id(leaf)] = storage.nbytes()
    return sum(storages.values())


def digest(tree: PyTree) -> str:
    """Return the sha256 of a tree's structure and of each leaf's dtype, shape and bytes.

    Two trees have the same digest if and only if their containers, keys, dtypes, shapes and bytes are
    equal: `-0.0` differs from `0.0`, and a NaN equals itself. Device and memory layout have no effect,
    so a state has the same digest on a GPU and after a round trip through a file.

    Args:
        tree: a tree of tensors of any dtype and device, which are copied to the host.

    Raises:
        TypeError: a leaf is not a tensor; the message names its path.

    >>> digest({"w": torch.zeros(2)}) == digest({"w": -torch.zeros(2)})
    False
    """
    hasher = hashlib.sha256()
    _absorb(hasher, tree, "")
    return hasher.hexdigest()


def digests(tree: PyTree) -> dict[str, str]:
    """Return `{path: digest}` for each leaf, with 64 bits of a sha256 as 16 hexadecimal digits.

    Two leaves have the same digest if and only if their dtypes, shapes and bytes are equal (except for
    collisions, one in 2**64 pairs). As for `digest`, device and memory layout have no effect.

    Args:
        tree: a tree of tensors, numbers and strings; numbers and strings are compared by type and value.

    Raises:
        TypeError: a leaf is of another type; the message names its path.

    >>> digests({"w": torch.zeros(2), "n": torch.tensor(3)})
    {"['n']": '...', "['w']": '...'}
    """
    pairs = zip(paths(tree), leaves(tree), strict=True)
    return {path: leaf_digest(leaf, path) for path, leaf in pairs}


def register_dataclass_node(cls: type, names: tuple[str, ...], *, is_record: bool) -> None:
    """Register `cls` with optree and torch's pytree, as a node whose children are the fields `names`.

    Args:
        cls: a dataclass.
        names: the fields that are children.
        is_record: True if the constructor only stores these fields, so that a node can be built without
            calling it (0.46 of the time for a `TrainState`, at every call of a compiled step).
    """

    def constructed(_: Any, children: Iterable[Any]) -> Any:
        return cls(**dict(zip(names, children, strict=True)))

    def stored(_: Any, children: Iterable[Any]) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return constructed(_, children)
        node: Any = object.__new__(cls)
        node.__dict__.update(zip(names, children, strict=True))
        return node

    def one_by_one(node: Any) -> tuple[Any, ...]:
        return tuple(getattr(node, name) for name in names)

    read = operator.attrgetter(*names) if len(names) > 1 else one_by_one
    register(
        cls,
        lambda node: (read(node), None, names),
        stored if is_record else constructed,
        optree.GetAttrEntry,
    )


@dataclass_transform(frozen_default=True)
def register_dataclass(cls: _C) -> _C:
    """Make a class a frozen dataclass whose fields are the children of a tree node.

    A class that already is a frozen dataclass keeps its options.

    Raises:
        TypeError: the class is, or inherits from, a dataclass that is not frozen.

    >>> @register_dataclass
    ... class Pair:
    ...     left: torch.Tensor
    ...     right: torch.Tensor
    >>> map(lambda x: x + 1, Pair(1, 2))
    Pair(left=2, right=3)
    """
    for base in cls.__mro__:
        if "__dataclass_fields__" in vars(base) and not vars(base)["__dataclass_params__"].frozen:
            heir = "" if base is cls else f"{cls.__name__}, which inherits from "
            raise TypeError(
                "register_dataclass: expected a frozen dataclass, or a class that is not a dataclass, "
                f"got {heir}the dataclass {base.__name__}, which is not frozen. Write "
                f"@dataclass(frozen=True) above {base.__name__}."
            )
    of: Any = cls
    is_plain = of.__init__ is object.__init__ and of.__new__ is object.__new__
    is_plain = is_plain and not hasattr(cls, "__post_init__")
    if "__dataclass_fields__" not in vars(cls):
        # Modifies the class in place, because it has no slots.
        dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    names = tuple(field.name for field in fields if field.init)
    are_slots = any(hasattr(getattr(cls, name, None), "__set__") for name in names)
    is_record = is_plain and len(names) == len(fields) and not are_slots
    register_dataclass_node(cls, names, is_record=is_record)
    return cls


@functools.lru_cache(maxsize=64)
def _places(treedef: TreeDef, name: str) -> tuple[tuple[int, str], ...]:
    """Return index and path of each leaf in a field of this name (cached, as steps repeat the call)."""
    return tuple(
        (index, accessor.codify(""))
        for index, accessor in enumerate(treedef.accessors())
        if len(accessor) and _entry_name(accessor[-1]) == name
    )


def _kind(tree: PyTree) -> str:
    if is_leaf(tree):
        return f"a leaf ({type(tree).__name__})"
    if isinstance(tree, (dict, list, tuple)) and not hasattr(tree, "_fields"):
        return f"{a_or_an(type(tree).__name__)} of {len(tree)} entries"
    return a_or_an(type(tree).__name__)


def _constants(tree: PyTree) -> str:
    """Return a node's static data, everything except its children, as text for a message."""
    return repr(optree.tree_flatten_one_level(tree, namespace=NAMESPACE).metadata)


def _path_to(node: Any, tree: PyTree) -> str:
    """Return the path from `tree` to `node`, a container that cannot be flattened."""
    accessors, found, _ = optree.tree_flatten_with_accessor(
        tree, is_leaf=lambda x: type(x) is type(node), namespace=NAMESPACE
    )
    places = (a.codify("") for a, x in zip(accessors, found, strict=True) if x is node)
    return next(places, None) or "the root"


def _entry_name(entry: optree.PyTreeEntry) -> Any:
    return getattr(entry, "field", None) or getattr(entry, "name", None) or entry.entry


def _absorb(hasher: hashlib._Hash, tree: PyTree, path: str) -> None:
    """Hash a tree depth first; lengths precede variable-length parts, so that encodings are unique."""
    if not is_leaf(tree):
        children = one_level(tree)
        _put(hasher, f"node {type(tree).__name__} {len(children)}")
        for key, child in children.items():
            _put(hasher, key)
            _absorb(hasher, child, path + key)
        return
    if not isinstance(tree, torch.Tensor):
        raise TypeError(
            f"the leaf at {path or 'the root'}: expected a tensor, got {type(tree).__name__} {tree!r}. "
            "Wrap numbers in torch.tensor(...)."
        )
    _put(hasher, f"leaf {tree.dtype} {tuple(tree.shape)}")
    hasher.update(row_major(tree))


def _put(hasher: hashlib._Hash, text: str) -> None:
    encoded = text.encode()
    hasher.update(len(encoded).to_bytes(8, "little"))
    hasher.update(encoded)
