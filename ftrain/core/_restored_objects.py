"""Python objects that a call may change, restored after the call.

A model may write to any object that it reaches: count in a dict, append to a list, register a hook,
store a tensor in its configuration. Such changes are not part of the training state, so they must not
survive a call.

Read next: `_reachable_objects.py`, which finds the objects; `_object_contents.py` and
`_fingerprints.py`, which compare them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ftrain.core._fingerprints import fingerprints_of
from ftrain.core._object_contents import Change, Group, emptied, empty_of, groups_of
from ftrain.core._reachable_objects import Found, reach, spell

__all__ = ["Owned"]


class _Watch:
    """Recorded contents of a set of Python objects, to compare and to restore."""

    def __init__(self, found: Found) -> None:
        self._groups = groups_of(found)
        self._empty = empty_of(found)
        self._prints = fingerprints_of(found)

    def same(self) -> bool:
        return (
            not any(self._empty)
            and all(map(Group.same, self._groups))
            and all(each.same() for each in self._prints)
        )

    def adopt_plain(self) -> bool:
        """Accept changed numbers and strings as new contents; return False if anything else changed."""
        return (
            not any(self._empty)
            and all(each.same() or each.adopt_plain() for each in self._groups)
            and all(each.same() for each in self._prints)
        )

    def restore_contents(self) -> list[Change]:
        """Restore containers, instances, closures and classes, but nothing else; return the changes."""
        changes = [emptied(node) for node in self._empty if node]
        for group in self._groups:
            changes += group.restore()
        return changes

    def put_back(self) -> None:
        """Restore all objects that can be restored; leave the other objects as the call changed them."""
        self.restore_contents()
        for each in self._prints:
            if each.refusal is None and not each.same():
                each.restore()

    def restore(self, changes: list[Change]) -> list[tuple[Any, str]]:
        """Restore the changed objects; return pairs `(object, reason)` for changes that must raise.

        Contents that were replaced are appended to `changes`.
        """
        changes += self.restore_contents()
        refused = []
        for each in self._prints:
            if not each.same():
                change = each.restore()
                if change is not None:
                    changes.append(change)
                if each.refusal is not None:
                    refused.append((each.node, each.refusal))
        return refused


class Owned:
    """All objects reachable from a module or function, restored after each call that changed them.

    Objects that only `roots` reach and objects that others reach too are recorded separately.

    Args:
        roots: names and objects.
        outside: objects to which the caller has access, or copies of such objects. Objects reachable
            from these may change between calls; objects that only `roots` reach must not. By default,
            all objects may change between calls.
        follow_globals: follow the global names that functions read, too.
        whole_modules: True to search all attributes of a module, False for its parameters, buffers and
            children only.
        limit: the maximum number of objects to compare; further ones are ignored.

    Attributes:
        found: the objects.
    """

    found: Found

    def __init__(
        self,
        roots: Iterable[tuple[str, Any]],
        *,
        outside: Iterable[Any] | None = None,
        follow_globals: bool = False,
        whole_modules: bool = True,
        limit: int | None = None,
    ) -> None:
        self._roots = list(roots)
        self._options: dict[str, Any] = {
            "follow_globals": follow_globals,
            "whole_modules": whole_modules,
            "limit": limit,
        }
        self._private_ids: frozenset[int] = frozenset()
        first = self._walk()
        if outside is not None:
            others = reach([("", thing) for thing in outside]).paths
            self._private_ids = frozenset(first.paths.keys() - others.keys())
            self._alive = first  # references prevent the reuse of these ids
        self._watch(first)

    def look(self) -> None:
        """Search for the reachable objects again, and record their contents for later comparisons."""
        self._watch(self._walk())

    def _walk(self) -> Found:
        return reach(self._roots, **self._options)

    def _watch(self, found: Found) -> None:
        self.found = found
        private, shared = found.split(self._private_ids)
        self._private, self._open = _Watch(private), _Watch(shared)

    def settle(self, private: bool = True) -> bool:
        """Accept changes that user code made between calls; return True if they required a new search.

        Objects that only `roots` reach are restored, because a backward pass may have changed them after
        the last call.

        Args:
            private: True to check these objects, because a backward pass may have run.
        """
        if private and not self._private.same():
            self._private.put_back()
        if self._open.same() or self._open.adopt_plain():
            return False
        self.look()
        return True

    def restore(self) -> tuple[list[Change], list[str]]:
        """Restore all objects to their recorded contents.

        Returns:
            The changes, and a sentence for each change that must raise.
        """
        changes: list[Change] = []
        refusals: list[str] = []
        for watch in (self._private, self._open):
            if not watch.same():
                for node, refusal in watch.restore(changes):
                    refusals.append(f"`{self.path(node)}` {refusal}")
        return changes, refusals

    def restore_contents(self) -> list[Change]:
        """Restore the contents of containers, instances, closures and classes only."""
        return [*self._private.restore_contents(), *self._open.restore_contents()]

    def path(self, node: Any) -> str:
        """Return the Python expression that reaches an object, such as `blocks[0].weight`."""
        return spell(self.found.paths.get(id(node)))
