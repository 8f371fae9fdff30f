"""Module without its own weights, in which each call installs the tensors of a state.

`torch.func.functional_call` corrupts a module whose submodule is reachable by two paths
(pytorch#164759), writes into the buffers that it gets, and does not remove objects that a forward stores
on the module. The skeleton is private and on the meta device, records every location of a tensor, and is
restored after each call.

Read next: `_restored_objects.py` (restores Python objects after a call), `_structure.py` (copies a
module's structure), `functional.py` (the public interface).
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ftrain.core._aliases import Alias, add_views, aliases_of
from ftrain.core._hooks import Hooks, parameter_hooks
from ftrain.core._kept_buffers import KeptBuffers, Lost
from ftrain.core._object_contents import Change, put_all, without_graphs
from ftrain.core._own_modes import has_own_modes, set_flags, settled
from ftrain.core._parameter_marks import marked, not_required, turn_off, unmark
from ftrain.core._reachable_objects import spell
from ftrain.core._recursion import deep_enough, depth_of
from ftrain.core._restored_objects import Owned
from ftrain.core._skeleton_errors import (
    PARAMETER_REMEDY,
    STRAY_REMEDY,
    check_names,
    check_shapes,
    not_a_tensor,
    refuse_changes,
    refuse_parting,
    replacement,
)
from ftrain.core._structure import (
    Tensors,
    copy_structure,
    hollow,
    named_tensors,
    refuse_lazy,
    refuse_overlap,
    refuse_scripted,
)
from ftrain.core._tensor_slots import (
    Slot,
    refuse_captured,
    refuse_fixed,
    refuse_leftovers,
    replaced,
    slots_of,
)
from ftrain.core._torch_checkpoint import around_regions, is_foreign_thread
from ftrain.core._torch_tensors import registries
from ftrain.core._traced_leftovers import guard
from ftrain.core._writes import FirstCalls, unchanged

__all__ = ["Skeleton", "skeleton_of"]


class _Outer(NamedTuple):
    """State of an outer call, which a nested call of the same module has to restore."""

    slots: list[tuple[Slot, Any]]
    flags: list[tuple[nn.Module, bool]]
    changes: list[Change]


class Skeleton:
    """Module without weights, in which each call installs the parameters and buffers of a state.

    Args:
        module: a module that the caller no longer uses, because its tensors are removed.
        original: the module of which `module` is a copy, or another one built by the same function.
            Objects that both reach are shared with the caller, who may change them between calls.
        hooks: the hooks of the module's parameters, by name.
        aliases: the views of its tensors that `module` holds.

    Attributes:
        module: the skeleton itself, with every tensor on the meta device.
        has_aliases: True if the module holds views of its parameters or buffers.
        settles: True if the module's own `train()` changed more than the flags of its submodules.
        trainable: names of the parameters with `requires_grad`, sorted.
        carried: names of all other tensors (buffers, frozen parameters), sorted.
        buffers: the names in `carried` that are not parameters.
        has_left_graphs: True if a caller may run a backward pass after `holding`, for which a check
            takes 5 µs per call.
        undone: the changes of Python objects that the last call undid; `None`: do not record them.
        carried_over: the changes of an earlier call with which a call starts; normally none.
        path: a function that returns the Python expression for an object of the module.
        lock: held during each call.
    """

    def __init__(
        self,
        module: nn.Module,
        original: nn.Module,
        hooks: Hooks,
        aliases: Sequence[tuple[torch.Tensor, Alias]] = (),
    ) -> None:
        self._nesting = depth_of(module)
        with deep_enough(self._nesting):
            self._bind(module, original, hooks, aliases)

    def _bind(
        self,
        module: nn.Module,
        original: nn.Module,
        hooks: Hooks,
        aliases: Sequence[tuple[torch.Tensor, Alias]],
    ) -> None:
        refuse_lazy(module)
        self.module = module
        own_modes = has_own_modes(module)
        self.settles = own_modes and settled(module)
        tensors = named_tensors(module)
        self.trainable = sorted(
            name for name, t in tensors.items() if isinstance(t, nn.Parameter) and t.requires_grad
        )
        self.carried = sorted(tensors.keys() - set(self.trainable))
        refuse_overlap(tensors)
        modules = dict(module.named_modules())
        roots = [("", module), *((f"{name}.hooks", each) for name, each in hooks.items())]
        outside = [original, *parameter_hooks(original).values()]
        self._owned = Owned(roots, outside=outside)
        self.path = self._owned.path
        self._hollow = {name: hollow(t) for name, t in tensors.items()}
        self._shapes = [(name, t.shape) for name, t in tensors.items()]
        self._aliases = {f"{alias.path} (a view of {alias.name})": alias for _, alias in aliases}
        self.has_aliases = bool(aliases)
        views = dict(zip(self._aliases, (t for t, _ in aliases), strict=True))
        self._hollow |= {name: hollow(t) for name, t in views.items()}
        names = {id(t): name for name, t in (tensors | views).items()}
        refuse_fixed(module, names)
        for slot in slots_of(self._owned.found, names):
            slot.holder[slot.key] = self._hollow[slot.name]
        refuse_captured(hooks, [*tensors.values(), *named_tensors(original).values()])
        self._registries = {
            id(registry): prefix for prefix, m in modules.items() for registry in registries(m)
        }
        self._flags = [(m, m.training) for m in modules.values()]
        whole = not module.training and not own_modes  # then `train()` sets all flags
        train = [(m, m.training or whole) for m in modules.values()]
        self._modes = {
            training: [
                (m, flag and training) for m, flag in train if m.training != (flag and training)
            ]
            for training in (False, True)
        }
        self._frozen = [name for name in self.carried if isinstance(tensors[name], nn.Parameter)]
        self.buffers = set(self.carried) - set(self._frozen)
        self._held: Tensors | None = None  # the installed parameters, inside `holding`
        self._call: list[Change] = []  # the changes of the running call, filled when it ends
        self.lock = threading.RLock()
        self._depth = 0
        self.has_left_graphs = False
        self.undone: list[Change] | None = None
        self.carried_over: list[Change] = []
        self._firsts = FirstCalls()
        self._owned.look()
        self._place()
        if not {id(m) for m in original.modules()} & {id(m) for m in self._owned.found.modules}:
            fixed = named_tensors(original).items()
            rest = {id(t): name for name, t in (*fixed, *tensors.items()) if name in self.carried}
            refuse_leftovers(self._owned.found.tensors, rest)
        self._own_eval = own_modes and self._evaluated()

    def _evaluated(self) -> bool:
        """Record the effects of the module's own `eval()`; return True if it changes more than flags."""
        try:
            self.module.eval()
        except Exception:  # it reads values, which a skeleton does not have
            self._put_back()
            return True
        after = [(m, m.training) for m, _ in self._flags]
        changes, refusals = self._put_back()
        self._modes[False] = [(m, flag) for m, flag in after if m.training != flag]
        return bool(changes or refusals)

    def _place(self) -> None:
        """Record where the module holds tensors of the state, and which other tensors it holds."""
        found = self._owned.found
        names = {id(t): name for name, t in self._hollow.items()}
        # `read` returns the first: if the model assigns a buffer, a list still has the old tensor.
        self._slots = sorted(
            slots_of(found, names), key=lambda slot: id(slot.holder) not in self._registries
        )
        trainable = set(self.trainable)
        self._registered = [
            (slot.holder, slot.key, slot.name)
            for slot in self._slots
            if slot.name in trainable and id(slot.holder) in self._registries
        ]
        self._stray = {
            spell(path): t for path, t in found.tensors if id(t) not in names and not t.is_meta
        }

    @contextlib.contextmanager
    def holding(
        self,
        params: Tensors,
        buffers: Tensors,
        training: bool,
        again: Sequence[Change] = (),
        outlived: bool = False,
    ) -> Iterator[None]:
        """Install `params` and `buffers` in the module inside the context, then restore the module.

        Training mode restores the original flags of the submodules (those frozen in eval mode remain
        so), or calls `train()` if the whole module was in eval mode. A part of an earlier call that is
        computed `again` starts with the attributes that this call assigned. They are recorded if the
        context is `outlived` by a graph, whose backward pass may compute such parts.
        """
        tensors = self.checked(params, buffers)
        # On CUDA, a recomputation runs in a thread of autograd, while its call holds the lock.
        is_recomputed = self._held is params and is_foreign_thread()
        lock = contextlib.nullcontext() if is_recomputed else self.lock
        with lock, deep_enough(self._nesting):
            outer = self._enter()
            marks, plain = list[torch.Tensor](), list[torch.Tensor]()
            held, self._held = self._held, params
            outer_call, self._call = self._call, []
            self._depth += 1
            try:
                put_all(again or (self.carried_over if outer is None else ()))
                guard(self.module)
                add_views(tensors, self._aliases, self.buffers)
                marks = marked([*params.values(), *(buffers[name] for name in self._frozen)])
                plain = not_required(params.values())
                for holder, key, name in self._slots:
                    holder[key] = tensors[name]
                set_flags(self._modes[training])
                if self._own_eval and not training:
                    self.module.eval()
                first = self._firsts.is_first(training, params.values())
                with (
                    unchanged(params, "parameter", PARAMETER_REMEDY, compare_bytes=first),
                    unchanged(self._stray, "tensor attribute", STRAY_REMEDY, compare_bytes=first),
                    around_regions(lambda: self._again(params, training)),
                ):
                    yield
                if first:
                    self._firsts.passed(training)
            except BaseException:
                self._leave(outer)
                raise
            else:
                slots = ((holder.get(key), name) for holder, key, name in self._registered)
                assigned = next((name for t, name in slots if t is not tensors[name]), None)
                changes, refusals = self._leave(outer)
                if outlived:
                    self._call += map(without_graphs, changes)
                if self.undone is not None and outer is None:
                    self.undone = changes
                refuse_changes(changes, refusals, self._registries)
                if assigned is not None:
                    raise replacement(assigned)
            finally:
                unmark(marks)
                if plain:
                    turn_off(plain)
                self._depth -= 1
                self._held, self._call = held, outer_call

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the module at the end of the context, in which the caller runs a backward pass."""
        with self.lock:
            inside = self._depth > 0
            if not inside:
                self._settle()
                self._depth += 1  # so that a recomputation counts as a nested call
        if inside:  # an outer `holding` will restore the module
            yield
            return
        try:
            first = self._firsts.is_first("backward", self._stray.values())
            with unchanged(self._stray, "tensor attribute", STRAY_REMEDY, compare_bytes=first):
                yield
            if first:
                self._firsts.passed("backward")
        except BaseException:
            self._put_back()
            raise
        else:
            refuse_changes(*self._put_back(), self._registries)
        finally:
            self._depth -= 1

    def _again(
        self, params: Tensors, training: bool
    ) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """Return a function whose contexts install the module's current tensors in the module again.

        A backward pass enters such a context to recompute a checkpointed region, when the forward pass
        may have written to its buffers, or `holding` may have ended.
        """
        kept, call = KeptBuffers(self.read(self.carried)), self._call

        def holding() -> contextlib.AbstractContextManager[None]:
            if self._held is params:
                return self._replaced(kept.restored())
            return self.holding(params, kept.restored(), training, call, outlived=True)

        return holding

    @contextlib.contextmanager
    def _replaced(self, buffers: Tensors) -> Iterator[None]:
        """Install other buffers inside of a running call, whose attributes stay as they are."""
        tensors = dict(buffers)
        views = {path: alias for path, alias in self._aliases.items() if alias.name in buffers}
        add_views(tensors, views, self.buffers)
        marks = marked([buffers[name] for name in self._frozen])
        try:
            with replaced(self._slots, tensors):
                yield
        finally:
            unmark(marks)

    def _enter(self) -> _Outer | None:
        """Reset the module before a call; return the settings of an outer call, if one is running."""
        if not self._depth:
            self._settle()
            return None
        # After this nested call of the module, the outer call continues with its earlier changes.
        slots = [(slot, slot.get()) for slot in self._slots]
        flags = [(m, m.training) for m, _ in self._flags]
        changes, _ = self._put_back()
        return _Outer(slots, flags, changes)

    def _settle(self) -> None:
        if self._owned.settle(private=self.has_left_graphs):
            self._place()

    def _leave(self, outer: _Outer | None) -> tuple[list[Change], list[str]]:
        """Restore the module to its state before the call.

        Returns:
            The changes that were undone, and a sentence for each change that must raise.
        """
        changes, refusals = self._put_back()
        if outer is not None:
            put_all(outer.changes)
            for slot, value in outer.slots:
                slot.set(value)
            set_flags(outer.flags)
        return changes, refusals

    def _put_back(self) -> tuple[list[Change], list[str]]:
        for slot in self._slots:
            slot.set(self._hollow[slot.name])
        set_flags(self._flags)
        return self._owned.restore()

    def read(self, names: Sequence[str]) -> Tensors:
        """Return the tensors called `names` that are currently installed in the module."""
        wanted = set(names)
        found: Tensors = {}
        for slot in self._slots:
            if slot.name in wanted and slot.name not in found:
                found[slot.name] = slot.holder[slot.key]
                if not isinstance(found[slot.name], (torch.Tensor, Lost)):
                    raise not_a_tensor(slot.name, found[slot.name])
            elif slot.name in wanted and slot.holder[slot.key] is not found[slot.name]:
                refuse_parting(slot, self._registries)
        return {name: found[name] for name in names}

    def counts(self) -> dict[str, int]:
        """Return the number of places in the module that hold each tensor of the state, by name."""
        return collections.Counter(slot.name for slot in self._slots)

    def stray_path(self, tensor: torch.Tensor) -> str | None:
        """Return the path at which the module holds an unregistered tensor; `None` if there is none."""
        return next((path for path, t in self._stray.items() if t is tensor), None)

    def checked(self, params: Tensors, buffers: Tensors) -> Tensors:
        """Merge `params` and `buffers` into one dict; raise unless they fit this module."""
        owner = type(self.module).__name__
        check_names("params", params, self.trainable, owner)
        check_names("buffers", buffers, self.carried, owner)
        tensors = {**params, **buffers}
        check_shapes(tensors, self._shapes, owner)
        return tensors


def skeleton_of(module: nn.Module) -> Skeleton:
    """Make a `Skeleton`: copy the structure of a module, but not the weights."""
    refuse_lazy(module)
    refuse_scripted(module)
    refuse_overlap(named_tensors(module))
    aliases = [(tensor, hollow(tensor), alias) for tensor, alias in aliases_of(module)]
    copy = copy_structure(module, {id(tensor): empty for tensor, empty, _ in aliases})
    views = [(empty, alias) for _, empty, alias in aliases]
    return Skeleton(copy, module, parameter_hooks(module), views)
