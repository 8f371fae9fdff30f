"""Trees: how ftrain sees nested containers of tensors.

A tree is any nesting of dicts, lists, tuples, NamedTuples and registered dataclasses. Its leaves come in
one canonical order (dict keys sorted), the same for optree and for `torch.utils._pytree`, so that the
state means the same thing to `ftrain.compile`, to `torch.vmap` and to a checkpoint.

Read next: `state.py`, the one tree that everything else passes around.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, dataclass_transform

import optree
import torch
import torch.utils._pytree as torch_pytree

from ftrain.core._words import a_or_an

__all__ = [
    "NAMESPACE",
    "digest",
    "find",
    "first_difference",
    "flatten",
    "leaves",
    "map",
    "nbytes",
    "paths",
    "register_dataclass",
    "structure",
    "unflatten",
]

NAMESPACE = "ftrain"

PyTree = Any
TreeDef = optree.PyTreeSpec
_C = TypeVar("_C", bound=type)


def flatten(tree: PyTree) -> tuple[list[Any], TreeDef]:
    """The leaves of a tree in canonical order, and the structure that holds them.

    >>> leaves, treedef = flatten({"b": torch.zeros(2), "a": torch.ones(1)})
    >>> [tuple(leaf.shape) for leaf in leaves]
    [(1,), (2,)]
    """
    return optree.tree_flatten(tree, namespace=NAMESPACE)


def unflatten(treedef: TreeDef, leaves: Iterable[Any]) -> PyTree:
    """The tree with structure `treedef` and these leaves: the inverse of `flatten`."""
    return optree.tree_unflatten(treedef, leaves)


def leaves(tree: PyTree) -> list[Any]:
    """The leaves of a tree in canonical order (dict keys sorted)."""
    return optree.tree_leaves(tree, namespace=NAMESPACE)


def structure(tree: PyTree) -> TreeDef:
    """The structure of a tree: hashable, comparable, without the leaves."""
    return optree.tree_structure(tree, namespace=NAMESPACE)


def map(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`fn` applied leaf by leaf over trees of one structure.

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
                f"trees of different structure: {first_difference(tree, other)}. "
                "Every tree must have the structure of the first one."
            )
        columns.append(other_leaves)
    return unflatten(treedef, [fn(*row) for row in zip(*columns, strict=True)])


def paths(tree: PyTree) -> list[str]:
    """Where each leaf sits, written as the Python that reaches it, in the order of `leaves`.

    >>> paths({"w": 0, "layers": [1, (2, 3)]})
    ["['layers'][0]", "['layers'][1][0]", "['layers'][1][1]", "['w']"]
    """
    return [accessor.codify("") for accessor in optree.tree_accessors(tree, namespace=NAMESPACE)]


def first_difference(expected: PyTree, found: PyTree, path: str = "") -> str | None:
    """The first place where two trees differ in structure, as a sentence; `None` where they agree.

    >>> first_difference({"a": 1, "b": (2,)}, {"a": 1, "b": (2, 3)})
    "at ['b']: expected a tuple of 1 entries, found 2"
    """
    if structure(expected) == structure(found):
        return None
    where = f"at {path}" if path else "at the root"
    if _is_leaf(expected) or _is_leaf(found) or type(expected) is not type(found):
        return f"{where}: expected {_kind(expected)}, found {_kind(found)}"
    ours, theirs = _children(expected), _children(found)
    for key, child in ours.items():
        if key not in theirs:
            if isinstance(expected, dict):
                return f"{where}: {key} is missing"
            return (
                f"{where}: expected {a_or_an(type(expected).__name__)} of {len(ours)} entries, "
                f"found {len(theirs)}"
            )
        deeper = first_difference(child, theirs[key], path + key)
        if deeper is not None:
            return deeper
    extra = [key for key in theirs if key not in ours]
    if extra and isinstance(expected, dict):
        return f"{where}: {extra[0]} was not expected"
    if extra:
        return (
            f"{where}: expected {a_or_an(type(expected).__name__)} of {len(ours)} entries, "
            f"found {len(theirs)}"
        )
    return f"{where}: expected {_kind(expected)}, found {_kind(found)}"


def find(tree: PyTree, name: str) -> dict[str, Any]:
    """Every leaf held by a field called `name`, with its path.

    How a training step reads the learning rate out of an optimizer state it knows nothing about.

    >>> find({"a": {"rate": 1.0}, "b": 2.0}, "rate")
    {"['a']['rate']": 1.0}
    """
    flat, treedef = flatten(tree)
    return {path: flat[index] for index, path in _places(treedef, name)}


def nbytes(tree: PyTree) -> int:
    """The bytes that the tensors of a tree hold, each distinct storage counted once."""
    storages = {}
    for leaf in leaves(tree):
        storage = leaf.untyped_storage()
        storages[storage.data_ptr() or id(leaf)] = storage.nbytes()
    return sum(storages.values())


def digest(tree: PyTree) -> str:
    """The sha256 of a tree: of its structure, and of each leaf's dtype, shape and bytes.

    Two trees have one digest exactly when their containers, keys, dtypes, shapes and bytes are
    equal: `-0.0` differs from `0.0`, a NaN equals itself. Device and memory layout do not count, so
    a state digests the same on a GPU and after a round trip through a file.

    Args:
        tree: a tree of tensors (any dtype and device; copied to the host to be read).

    Raises:
        TypeError: a leaf is not a tensor; the message names its path.

    >>> digest({"w": torch.zeros(2)}) == digest({"w": -torch.zeros(2)})
    False
    """
    hasher = hashlib.sha256()
    _absorb(hasher, tree, "")
    return hasher.hexdigest()


def register_dataclass_node(cls: type, names: tuple[str, ...]) -> None:
    """Make `cls` a node with these fields, for optree and for torch's pytree alike.

    torch's pytree keeps a dict's insertion order where optree sorts, so the leaves of one must never
    meet the structure of the other. Here torch sees a single node whose children *are* optree's
    leaves: one order, by construction.
    """
    optree.register_pytree_node(
        cls,
        lambda node: (tuple(getattr(node, name) for name in names), None, names),
        lambda _, children: cls(**dict(zip(names, children, strict=True))),
        path_entry_type=optree.GetAttrEntry,
        namespace=NAMESPACE,
    )

    def to_torch(node: Any) -> tuple[list[Any], TreeDef]:
        # torch counts None as a leaf; so does this, that prefix trees such as vmap's in_dims fit.
        return optree.tree_flatten(node, none_is_leaf=True, namespace=NAMESPACE)

    def from_torch(children: Iterable[Any], treedef: TreeDef) -> Any:
        return optree.tree_unflatten(treedef, children)

    torch_pytree.register_pytree_node(
        cls,
        to_torch,
        from_torch,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=lambda node: (
            [
                (torch_pytree.GetAttrKey(path.removeprefix(".")), leaf)
                for path, leaf in zip(paths(node), leaves(node), strict=True)
            ],
            structure(node),
        ),
    )


@dataclass_transform(frozen_default=True)
def register_dataclass(cls: _C) -> _C:
    """Class decorator: a frozen dataclass whose fields are the children of a tree node.

    >>> @register_dataclass
    ... class Pair:
    ...     left: torch.Tensor
    ...     right: torch.Tensor
    >>> map(lambda x: x + 1, Pair(1, 2))
    Pair(left=2, right=3)
    """
    dataclasses.dataclass(frozen=True)(cls)  # in place: there are no slots
    names = tuple(field.name for field in dataclasses.fields(cls) if field.init)
    register_dataclass_node(cls, names)
    return cls


@functools.lru_cache(maxsize=64)
def _places(treedef: TreeDef, name: str) -> tuple[tuple[int, str], ...]:
    """The leaves held by fields of this name, index and path: the same for every step of a run."""
    return tuple(
        (index, accessor.codify(""))
        for index, accessor in enumerate(treedef.accessors())
        if len(accessor) and _entry_name(accessor[-1]) == name
    )


def _is_leaf(tree: PyTree) -> bool:
    return tree is not None and optree.tree_is_leaf(tree, namespace=NAMESPACE)


def _kind(tree: PyTree) -> str:
    if _is_leaf(tree):
        return f"a leaf ({type(tree).__name__})"
    if isinstance(tree, (dict, list, tuple)) and not hasattr(tree, "_fields"):
        return f"{a_or_an(type(tree).__name__)} of {len(tree)} entries"
    return a_or_an(type(tree).__name__)


def _children(tree: PyTree) -> dict[str, Any]:
    if tree is None:
        return {}
    children, _, entries, _ = optree.tree_flatten_one_level(tree, namespace=NAMESPACE)
    if isinstance(tree, dict):
        return {f"[{key!r}]": child for key, child in zip(entries, children, strict=True)}
    if dataclasses.is_dataclass(tree):
        return {f".{key}": child for key, child in zip(entries, children, strict=True)}
    if hasattr(tree, "_fields"):
        return {f".{key}": c for key, c in zip(tree._fields, children, strict=True)}
    return {f"[{key!r}]": child for key, child in zip(entries, children, strict=True)}


def _entry_name(entry: optree.PyTreeEntry) -> Any:
    return getattr(entry, "field", None) or getattr(entry, "name", None) or entry.entry


def _absorb(hasher: hashlib._Hash, tree: PyTree, path: str) -> None:
    """Depth first; every variable-length part is preceded by its length, so no two trees collide."""
    if not _is_leaf(tree):
        children = _children(tree)
        _put(hasher, f"node {type(tree).__name__} {len(children)}")
        for key, child in children.items():
            _put(hasher, key)
            _absorb(hasher, child, path + key)
        return
    if not isinstance(tree, torch.Tensor):
        raise TypeError(
            f"the leaf at {path or 'the root'} is {type(tree).__name__} {tree!r}, not a tensor. "
            "Wrap numbers in torch.tensor(...)."
        )
    _put(hasher, f"leaf {tree.dtype} {tuple(tree.shape)}")
    plain = tree.detach().cpu().resolve_conj().resolve_neg()
    # Not contiguous(): a (1,) with stride 2 counts as that, and cannot be viewed as bytes.
    flat = plain.clone(memory_format=torch.contiguous_format).reshape(-1)
    hasher.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _put(hasher: hashlib._Hash, text: str) -> None:
    encoded = text.encode()
    hasher.update(len(encoded).to_bytes(8, "little"))
    hasher.update(encoded)
