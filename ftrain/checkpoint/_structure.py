"""Description of a tree's containers as JSON, used to compare a checkpoint with a state."""

from __future__ import annotations

from typing import Any

from ftrain.core import tree

__all__ = ["describe", "first_difference"]

_LEAF = "*"
_DEEPEST = 100  # deeper JSON may not be read where the stack is deep already


def describe(node: Any, depth: int = 0) -> Any:
    """Describe the containers of a tree as JSON values, with `"*"` for a leaf and `null` for `None`.

    A container is `[type, [[entry, child], ...]]`.

    Example:
        >>> describe({"w": 0, "layers": (1, None)})
        ['dict', [["['layers']", ['tuple', [['[0]', '*'], ['[1]', None]]]], ["['w']", '*']]]
    """
    if node is None:
        return None
    if tree.is_leaf(node):
        return _LEAF
    if depth == _DEEPEST:
        raise ValueError(
            f"state: expected at most {_DEEPEST} levels of nested containers, got more. Flatten the "
            "state."
        )
    children = tree.one_level(node).items()
    return [type(node).__name__, [[name, describe(child, depth + 1)] for name, child in children]]


def first_difference(saved: Any, wanted: Any, path: str = "") -> str | None:
    """Return the first difference between the descriptions of two trees; `None` if they are equal."""
    if saved == wanted:
        return None
    where = f"at {path}" if path else "at the root"
    if not _is_container(saved) or not _is_container(wanted) or saved[0] != wanted[0]:
        return f"{where} the checkpoint has {_kind(saved)}, `like` has {_kind(wanted)}"
    ours, theirs = dict(saved[1]), dict(wanted[1])
    for name, child in ours.items():
        if name not in theirs:
            return f"{path}{name} is in the checkpoint, but not in `like`"
        deeper = first_difference(child, theirs[name], path + name)
        if deeper is not None:
            return deeper
    for name in theirs:
        if name not in ours:
            return f"{path}{name} is in `like`, but not in the checkpoint"
    return f"{where} the checkpoint has its entries in another order than `like`"


def _is_container(found: Any) -> bool:
    """Return True if JSON from an untrusted file is a well-formed description of a container."""
    return (
        isinstance(found, list)
        and len(found) == 2
        and isinstance(found[0], str)
        and isinstance(found[1], list)
        and all(
            isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
            for entry in found[1]
        )
    )


def _kind(found: Any) -> str:
    if found is None:
        return "None"
    if found == _LEAF:
        return "a tensor"
    return f"a {found[0][:80]}" if _is_container(found) else "something unreadable"
