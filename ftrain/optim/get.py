"""Lookup of values in an optimizer's state by name, at any depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optree

from ftrain.core import tree
from ftrain.optim.protocol import PyTree

__all__ = ["get", "locate", "nodes"]


def get(state: PyTree, name: str, *within: str) -> Any:
    """Return the value of a field of an optimizer's state, found by its name, which must be unique.

    Fields of states are searched before keys of dicts, so that a parameter called `count` does not hide
    the field `count`. Several names select from the outermost entry inwards: `get(state, "backbone",
    "count")` is the count in the value of `backbone`.

    Args:
        state: an optimizer's state, or any other tree.
        name: of a field (`learning_rate`, `count`, `mu`, `ema`), a group or a hyper-parameter.
        *within: further names, each searched in the value that the previous name selected.

    Raises:
        LookupError: the name is missing; the message lists the existing names.
        ValueError: several fields have the name; the message lists their paths.

    Example:
        >>> import torch
        >>> from ftrain import optim
        >>> optimizer = optim.chain(optim.clip_by_global_norm(1.0), optim.adamw(1e-3))
        >>> state = optimizer.init({"w": torch.ones(2)})
        >>> get(state, "learning_rate"), get(state, "mu")
        (tensor(0.0010), {'w': tensor([0., 0.])})
    """
    return locate(state, name, *within)[1]


def locate(state: PyTree, name: str, *within: str) -> tuple[str, Any]:
    """Return the path and the value of the only field called `name`."""
    path, value = _one(state, name)
    if not within:
        return path, value
    deeper, value = locate(value, *within)
    return path + deeper, value


def nodes(state: PyTree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every node and leaf of a state with its path, outermost first."""
    yield path, state
    for step, _, child, _ in _children(state):
        yield from nodes(child, path + step)


def _one(state: PyTree, name: str) -> tuple[str, Any]:
    found = [(path, value) for path, field, value in _holders(state) if field == name]
    if not found:
        found = [(path, value) for path, key, value in _holders(state, keys=True) if key == name]
    if len(found) == 1:
        return found[0]
    if not found:
        fields = dict.fromkeys(field for _, field, _ in _holders(state))
        keys = dict.fromkeys(str(key) for _, key, _ in _holders(state, keys=True))
        listed = ", ".join([*fields, *keys][:20])
        raise LookupError(
            f"no entry of this state is called {name!r}. Its entries are: {listed or 'none'}."
        )
    paths = "\n".join(f"  {path}" for path, _ in found)
    raise ValueError(
        f"{len(found)} entries of this state are called {name!r}:\n{paths}\nPass the name of an "
        f'enclosing entry first, `optim.get(state, "<holder>", {name!r})`, or write '
        f"the path: `state{found[0][0]}`."
    )


def _children(node: PyTree) -> list[tuple[str, Any, Any, bool]]:
    """Return `(path, name, child, is_field)` for each child of a tree node; an empty list at a leaf."""
    if node is None or tree.is_leaf(node):
        return []
    below, _, entries, _ = optree.tree_flatten_one_level(node, namespace=tree.NAMESPACE)
    fields = getattr(node, "_fields", None) if isinstance(node, tuple) else None
    if fields is not None:
        return [(f".{f}", f, child, True) for f, child in zip(fields, below, strict=True)]
    if isinstance(node, (dict, list, tuple)):
        return [(f"[{e!r}]", e, child, False) for e, child in zip(entries, below, strict=True)]
    # A mapping class of the tree has one child with an empty name, which adds nothing to the path.
    return [(f".{e}" if e else "", e, child, True) for e, child in zip(entries, below, strict=True)]


def _holders(node: PyTree, path: str = "", *, keys: bool = False) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, name and value of each field or, if `keys` is True, of each key of a container."""
    for step, name, child, is_field in _children(node):
        if is_field != keys:
            yield path + step, name, child
        yield from _holders(child, path + step, keys=keys)
