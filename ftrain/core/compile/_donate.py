"""Donation: the new state reuses the old state's memory, and any further use of the old one raises.

A state is claimed before its program runs, in constant time and by one call only: its class is replaced
by a subclass that raises on every use, and its references to containers are removed. The tensors become
the leaves of the returned state. Of a dict, list or tuple of states (the two players of a GAN), each
state is claimed.

Read next: `_ownership.py`, which protects tensors of the state that have other references.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import optree
import torch

from ftrain.core import _torch_pytree as torch_pytree
from ftrain.core import tree
from ftrain.core._words import a_or_an
from ftrain.core.compile._errors import call_site, describe
from ftrain.core.compile._ownership import OwnedLeaves, known, storage_of
from ftrain.core.errors import DonatedStateError, DonationError

__all__ = [
    "check_donatable",
    "check_fits",
    "check_memory",
    "claim",
    "first_state",
    "is_donatable",
    "owned",
]

_NOTE = "_ftrain_donated_at"


class ClaimRecord(NamedTuple):
    """Record, in a claimed state, of the call that claimed it."""

    function: str
    code: types.CodeType | None
    line: int | None
    failed: bool = False


class Claim:
    """Exclusive right to a state's memory.

    Raises:
        DonatedStateError: another call has claimed the state.
    """

    def __init__(self, state: Any, function: str, caller: types.FrameType | None) -> None:
        cls: Any = type(state)
        self._state, self._class = state, cls
        self._note = ClaimRecord(function, caller and caller.f_code, caller and caller.f_lineno)
        fields = object.__getattribute__(state, "__dict__")
        # `setdefault` is atomic, so only one of several threads stores its note.
        note = fields.setdefault(_NOTE, self._note)
        if note is not self._note:
            _raise(note, cls)
        object.__setattr__(state, "__class__", _poisoned(cls))
        object.__setattr__(state, "__dict__", {_NOTE: note})

    def release(self, state: Any) -> None:
        """Cancel the donation: make the old state usable again, with the fields of `state`."""
        self.restore(vars(state))

    def restore(self, fields: dict[str, Any]) -> None:
        """Cancel the donation: make the old state usable again, with these fields."""
        object.__setattr__(self._state, "__dict__", dict(fields))
        object.__setattr__(self._state, "__class__", self._class)

    def fail(self) -> None:
        """Mark the state as lost, since its memory may be half overwritten."""
        object.__setattr__(self._state, "__dict__", {_NOTE: self._note._replace(failed=True)})


class Claims:
    """Exclusive right to the memory of every state in a dict, list or tuple; see `claim`."""

    def __init__(self, donated: Any, function: str, caller: types.FrameType | None) -> None:
        self._claims: list[Claim] = []
        fields: list[dict[str, Any]] = []
        try:
            for state in _states(donated):
                found = dict(object.__getattribute__(state, "__dict__"))
                self._claims.append(Claim(state, function, caller))
                fields.append(found)
        except DonatedStateError:
            for one, found in zip(self._claims, fields, strict=True):
                one.restore(found)
            raise

    def release(self, donated: Any) -> None:
        """Cancel the donation: make the old states usable again, with the fields of `donated`."""
        for one, state in zip(self._claims, _states(donated), strict=True):
            one.release(state)

    def fail(self) -> None:
        """Mark the states as lost, since their memory may be half overwritten."""
        for one in self._claims:
            one.fail()


def claim(donated: Any, function: str, caller: types.FrameType | None) -> Claim | Claims:
    """Claim the memory of a state, or of every state in a dict, list or tuple.

    Raises:
        DonatedStateError: another call has claimed one of the states; none is claimed then.
    """
    if isinstance(donated, _CONTAINERS):
        return Claims(donated, function, caller)
    return Claim(donated, function, caller)


def first_state(donated: Any) -> Any:
    """Return a donated state, or the first one in a donated dict, list or tuple."""
    return next(_states(donated)) if isinstance(donated, _CONTAINERS) else donated


def is_donatable(donated: Any) -> bool:
    """Return True for a frozen dataclass of tensors, and for a dict, list or tuple of such states."""
    return _not_donatable(donated, "") is None


def check_donatable(donated: Any) -> None:
    """Raise `TypeError` unless the first argument is a state, or a dict, list or tuple of states."""
    got = _not_donatable(donated, "")
    if got is None:
        return
    raise TypeError(
        "donate=True: expected a frozen dataclass as first argument, or a dict, list or tuple of them, "
        f"got {got}. Only a frozen dataclass can be marked as donated, so that a later use of it raises "
        "instead of reading overwritten memory. Pass a TrainState, or declare your own:\n\n"
        "    @ftrain.tree.register_dataclass\n"
        "    class State:\n"
        "        params: dict[str, torch.Tensor]\n"
    )


_CONTAINERS = (dict, list, tuple)


def _states(donated: Any) -> Iterator[Any]:
    """Yield the states in a container, in the order of its leaves; or the state itself."""
    if not isinstance(donated, _CONTAINERS):
        yield donated
        return
    for _, child in _children(donated):
        yield from _states(child)


def _children(container: Any) -> list[tuple[Any, Any]]:
    """Return the keys or positions of a container, each with its child, in the order of its leaves."""
    children, _, entries, _ = optree.tree_flatten_one_level(container, namespace=tree.NAMESPACE)
    return list(zip(entries, children, strict=True))


def _not_donatable(donated: Any, path: str) -> str | None:
    """Describe the first part that is neither a state nor a container of states; `None` without one."""
    if isinstance(donated, _CONTAINERS) and not tree.is_leaf(donated):
        children = _children(donated)
        parts = (_not_donatable(child, f"{path}[{entry!r}]") for entry, child in children)
        inside = next(filter(None, parts), None)
        if children:
            return inside
    cls = type(donated)
    params = getattr(cls, "__dataclass_params__", None)
    is_node = not tree.is_leaf(donated)
    if params is not None and params.frozen and is_node and hasattr(donated, "__dict__"):
        return None
    found = a_or_an(cls.__name__)
    return f"{found} at {path}" if path else found


def check_memory(
    donated: Sequence[torch.Tensor],
    names: Sequence[str],
    others: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """Raise if a donated leaf cannot be written to, or shares memory with another tensor.

    Raises:
        DonationError: two donated leaves share memory, or one shares memory with another tensor that the
            function reads; the message names both.
    """
    owners: dict[int, str] = {}
    for name, leaf in zip(names, donated, strict=True):
        if leaf.is_inference():
            raise DonationError(
                f"`{name}` was made under torch.inference_mode() and cannot be written to. Clone the "
                "state outside of it: state = ftrain.tree.map(torch.clone, state)."
            )
        if any(s == 0 and n > 1 for s, n in zip(leaf.stride(), leaf.shape, strict=True)):
            raise DonationError(
                f"`{name}` ({describe(leaf)}) is expanded: several of its elements share one memory "
                "location, so it cannot be written to. Give each element its own: "
                "tensor.clone(memory_format=torch.contiguous_format)."
            )
        address = storage_of(leaf)
        if address and address in owners:
            raise DonationError(_shared(owners[address], name))
        owners[address] = name
    for name, tensor in others:
        address = storage_of(tensor)
        if address and address in owners:
            raise DonationError(_shared(owners[address], name))


def check_fits(function: str, state: Any, output: Any) -> bool:
    """Return True if the output is the new state; False if only its first element is.

    Raises:
        DonationError: neither has the structure of the donated state.
    """
    expected = tree.structure(state)
    if tree.structure(output) == expected:
        return True
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if first is not output and tree.structure(first) == expected:
        return False
    what = "its first output" if first is not output else "its output"
    raise DonationError(
        f"`{function}` is compiled with donate=True, but {what} differs in structure from the state, "
        f"{tree.first_difference(first, state)}. Return the new state first, with the structure of the "
        "old one (`return state.replace(...), metrics`), or compile with donate=False."
    )


def _shared(first: str, second: str) -> str:
    return (
        f"`{first}` and `{second}` share memory, so writing the new state into the old one's memory "
        "would change both. Copy them before the call: state = ftrain.tree.map(torch.clone, state)."
    )


@functools.cache
def _poisoned(cls: type[Any]) -> type[Any]:
    """Return the subclass of `cls` whose instances raise on every use."""

    def use(self: Any, *_: Any, **__: Any) -> NoReturn:
        _raise(object.__getattribute__(self, "__dict__")[_NOTE], cls)

    def getattribute(self: Any, name: str) -> Any:
        if name == "__class__":  # read by isinstance()
            return type(self)
        use(self)

    dunders = ("__repr__", "__str__", "__eq__", "__hash__", "__iter__", "__len__", "__getitem__")
    namespace: dict[str, Any] = dict.fromkeys(dunders, use)
    namespace |= {
        "__getattribute__": getattribute,
        "__setattr__": use,
        "__module__": cls.__module__,
    }
    poisoned = type(f"Donated{cls.__name__}", (cls,), namespace)

    def unflatten(*_: Any) -> NoReturn:
        raise DonatedStateError(
            f"a donated {cls.__name__} cannot be passed to replace, tree.map or copy. Use the "
            "state that the call returned."
        )

    optree.register_pytree_node(poisoned, use, unflatten, namespace=tree.NAMESPACE)
    torch_pytree.register_pytree_node(
        poisoned,
        use,
        unflatten,
        serialized_type_name=f"{cls.__module__}.{poisoned.__qualname__}.{id(poisoned)}",
    )
    return poisoned


def _raise(note: ClaimRecord, cls: type) -> NoReturn:
    function = note.function
    where = ""
    if note.code is not None and note.line is not None:
        where = f"\n\nIt was donated here:\n{call_site(note.code, note.line)}"
    if note.failed:
        raise DonatedStateError(
            f"this {cls.__name__} was donated to `{function}`, which then failed while it ran: its "
            f"memory may hold half of the next state. Resume from a checkpoint or a copy.{where}"
        )
    raise DonatedStateError(
        f"this {cls.__name__} was donated to `{function}`: its memory now holds the state that "
        f"`{function}` returned.{where}\n\n"
        "Probably written:\n"
        f"    new, metrics = {function}(state, batch)\n"
        "    ... state ...\n"
        "Meant:\n"
        f"    state, metrics = {function}(state, batch)\n"
        "    ... state ...\n\n"
        "To keep the old state as well, copy it first: old = ftrain.tree.map(torch.clone, state). "
        "Or compile with donate=False."
    )


def changed_leaf(
    names: Sequence[str], before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]
) -> str | None:
    """Describe the first leaf whose shape, dtype or device changed; `None` if none changed."""
    for name, old, new in zip(names, before, after, strict=True):
        if (old.shape, old.dtype, old.device) != (new.shape, new.dtype, new.device):
            return f"`{name}` was {describe(old)} and becomes {describe(new)}"
    return None


def owned(state: Any, tensors: Sequence[Any], n: int) -> OwnedLeaves | None:
    """Return the record of a state's leaves if these are the first `n` of `tensors`; else `None`."""
    found = known(first_state(state))
    # A dict of states is recorded by its first state, which may be in another dict too.
    if found is None or len(found.leaves) != n:
        return None
    return found if found.is_of(tensors) else None
