"""Hypothesis strategy of pytrees: nested tuples, lists, dicts, NamedTuples and dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple, get_args

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ftrain.core import tree
from ftrain.testing.strategies.tensors import tensors

__all__ = ["Box", "Pair", "trees"]

Container = Literal["tuple", "list", "dict", "namedtuple", "dataclass", "none"]
_CONTAINERS: tuple[Container, ...] = get_args(Container)


class Pair(NamedTuple):
    """NamedTuple that occurs in drawn trees.

    Attributes:
        first: a tree.
        second: a tree.
    """

    first: Any
    second: Any


@tree.register_dataclass
class Box:
    """Frozen dataclass that occurs in drawn trees.

    Attributes:
        content: a tree.
    """

    content: Any


def trees(
    leaves: SearchStrategy[Any] | None = None,
    *,
    max_leaves: int = 6,
    containers: Collection[Container] = _CONTAINERS,
) -> SearchStrategy[Any]:
    """Return a strategy of trees, which shrink to one leaf.

    Args:
        leaves: a strategy of leaves; default: `tensors()`.
        max_leaves: the largest number of leaves, approximately.
        containers: the kinds of nodes: "tuple", "list", "dict", "namedtuple" (`Pair`), "dataclass"
            (`Box`), "none" (`None`, a node without leaves).

    Raises:
        ValueError: a kind is unknown.

    Example:
        >>> from hypothesis import find, strategies as st
        >>> find(trees(st.just(0)), lambda tree: isinstance(tree, dict) and len(tree) == 2)
        {'a': 0, 'b': 0}
    """
    for kind in containers:
        if kind not in _CONTAINERS:
            raise ValueError(
                f"containers: expected kinds from {_CONTAINERS}, got {kind!r}. Write one of them."
            )
    leaves = tensors() if leaves is None else leaves
    if "none" in containers:
        leaves = leaves | st.none()
    makers = [_MAKERS[kind] for kind in containers if kind != "none"]
    if not makers:
        return leaves
    return st.recursive(
        leaves,
        lambda children: st.one_of(*(make(children) for make in makers)),
        max_leaves=max_leaves,
    )


def _tuples(children: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.lists(children, max_size=3).map(tuple)


def _lists(children: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.lists(children, max_size=3)


def _dicts(children: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from("abcd"), children, max_size=3)


_MAKERS: dict[str, Callable[[SearchStrategy[Any]], SearchStrategy[Any]]] = {
    "tuple": _tuples,
    "list": _lists,
    "dict": _dicts,
    "namedtuple": lambda children: st.builds(Pair, children, children),
    "dataclass": lambda children: st.builds(Box, children),
}
