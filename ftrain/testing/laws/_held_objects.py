"""Objects that a function reaches (its model, closure, global variables), collected before a call.

Read next: `_restored_state.py`, which restores them after a check; `pure.py`, which compares them.
"""

from __future__ import annotations

import gc
import types
from typing import Any, NamedTuple

import torch

from ftrain.core import _torch, tree
from ftrain.core._object_contents import Change
from ftrain.core._reachable_objects import Found, Globals, Path, reach, spell
from ftrain.core._restored_objects import Owned
from ftrain.core.compile import Compiled
from ftrain.core.random._own_generators import GLOBAL
from ftrain.core.random._watch import Watch
from ftrain.core.step import TrainStep
from ftrain.testing.difference import Difference, first_difference
from ftrain.testing.laws._named_classes import of_users

__all__ = ["Held", "memory_of", "roots_of"]

_MOST = 50_000  # largest number of objects in a snapshot; further ones are ignored
_GLOBAL = (torch.default_generator, *GLOBAL)


class _Tensor(NamedTuple):
    """Tensor with its bytes and its gradient before the call."""

    tensor: torch.Tensor
    value: torch.Tensor
    grad: torch.Tensor | None
    requires_grad: bool


class Held:
    """Snapshot of the Python objects and tensors that can be reached from some root objects.

    Args:
        *roots: functions, modules and other objects.
        follow_globals: follow the global variables that functions read.
    """

    def __init__(self, *roots: Any, follow_globals: bool = False) -> None:
        self._roots = roots if follow_globals else ()  # used to name the owner in messages
        self._owned = Owned(
            [("", root) for root in roots], follow_globals=follow_globals, limit=_MOST
        )
        self._classes = of_users(self._owned.found.classes if follow_globals else ())
        data = [(f"{c.name}.{n}", x) for c in self._classes for n, x in c.values.items()]
        self._of_classes = Owned(data, limit=_MOST)
        found = {
            spell(path): t
            for path, t in (
                *self._owned.found.tensors,
                *self._of_classes.found.tensors,
                *_cached(self._owned.found),
            )
            if not t.is_meta
        }
        self.tensors = {
            name: t
            for name, t in found.items()
            if t.layout == torch.strided and not _torch.is_wrapped(t)
        }
        self._before = {
            name: _Tensor(
                t, t.detach().clone(), None if t.grad is None else t.grad.clone(), t.requires_grad
            )
            for name, t in self.tensors.items()
        }

    @property
    def generators(self) -> list[tuple[str, Any]]:
        """Return `(name, generator)` for each non-global random generator among the objects."""
        own = [g for g in self._owned.found.generators if not any(g is one for one in _GLOBAL)]
        return [(self._owned.path(g) or "the generator", g) for g in own]

    def __len__(self) -> int:
        return len(self._owned.found.paths)

    def restore(self) -> list[str]:
        """Restore Python objects; return names of changed ones, with `!` first if restoring failed."""
        paths: dict[str, None] = {}
        refused = []
        for owned in (self._owned, self._of_classes):
            changed, refusals = owned.restore()
            paths |= dict.fromkeys(
                self._named(change, owned.path(change.node)) for change in changed
            )
            refused += refusals
        paths |= dict.fromkeys(name for each in self._classes for name in each.restore())
        return [*paths, *(f"!{refusal}" for refusal in refused)]

    def _named(self, change: Change, path: str) -> str:
        """Return the path of a restored object, with the name of its first changed attribute."""
        if isinstance(change.node, Globals):
            now = zip(change.node.names, change.values, strict=True)
            scope = change.node.scope  # has its old values again
            return next(f"the global variable {n!r}" for n, x in now if scope.get(n, None) is not x)
        if not path:
            owners = (getattr(root, "__self__", root) for root in self._roots)
            node = getattr(change.node, "instance", change.node)  # an instance with __slots__
            of_root = (o for o in owners if o is node or getattr(o, "__dict__", None) is node)
            path = next((type(owner).__name__ for owner in of_root), "")
        if not isinstance(change.node, dict) or change.keys is None:
            return path
        if not path and not self._roots:
            return ""  # the changed object is the model itself
        after = dict(zip(change.keys, change.values, strict=True))
        names = [
            name
            for name in {**change.node, **after}
            if isinstance(name, str) and after.get(name, after) is not change.node.get(name, after)
        ]
        return f"{names[0]!r} of {path}".removesuffix(" of ") if names else path

    def changed_tensor(self) -> tuple[str, Difference] | None:
        """Return the name and difference of the first tensor whose bytes changed; `None` if none did."""
        for name, was in self._before.items():
            difference = first_difference(was.tensor.detach(), was.value)
            if difference is not None:
                return name, difference
        return None

    def changed_grad(self) -> str | None:
        """Return the name of the first tensor whose `.grad` or `requires_grad` changed, if any."""
        for name, was in self._before.items():
            now = was.tensor.grad
            same = was.tensor.requires_grad == was.requires_grad
            if (now is None) != (was.grad is None) or not same:
                return name
            if now is not None and first_difference(now.detach(), was.grad) is not None:
                return name
        return None

    def restore_tensors(self) -> None:
        """Restore the bytes and gradients of the tensors from the snapshot."""
        with torch.no_grad():
            for was in self._before.values():
                if first_difference(was.tensor.detach(), was.value) is not None:
                    was.tensor.data.copy_(was.value)
                was.tensor.grad = was.grad
                if was.tensor.is_leaf:
                    was.tensor.requires_grad_(was.requires_grad)


def _cached(found: Found) -> list[tuple[Path, torch.Tensor]]:
    """Return the tensors among the results that functions under `functools.lru_cache` have stored."""
    tensors = []
    for cache in found.caches:
        name = spell(found.paths.get(id(cache)))
        # The cache is a C object, whose contents only the garbage collector lists.
        results = [
            x for x in gc.get_referents(cache) if not isinstance(x, (type, types.FunctionType))
        ]
        held = reach([("", results)]).tensors
        tensors += [((None, f"{name}, cached result {i}"), t) for i, (_, t) in enumerate(held, 1)]
    return tensors


def roots_of(fn: Any) -> tuple[Any, ...]:
    """Return the loss, model and optimizer of a step of ftrain; `(fn,)` for any other function."""
    if isinstance(fn, TrainStep):
        return fn._watch._roots
    if isinstance(fn, Compiled):
        return roots_of(fn.fn)
    closure = getattr(fn, "__closure__", None) or ()
    for cell in closure if str(getattr(fn, "__module__", "")).startswith("ftrain.") else ():
        held = cell.cell_contents
        if isinstance(held, Watch):
            return held._roots
    return (fn,)


def memory_of(values: Any) -> dict[int, str]:
    """Return `{address of the storage: path}` for the tensors of a tree that have memory."""
    return {
        leaf.untyped_storage().data_ptr(): path
        for path, leaf in zip(tree.paths(values), tree.leaves(values), strict=True)
        if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided and leaf.numel()
    }
