"""Assignment of the callback states in a checkpoint to the callbacks of a resumed run.

A state is saved under the name of its callback, by default the name of its class. If several callbacks
of one name were matched by their order, another order would silently swap their states. Therefore
digests of the callbacks' attributes are saved too: of all attributes, of the public ones, and of the
public ones with only the last part of each path, for a run whose directory was moved. Attributes that
hold data (a tensor, a long list, a dataset, an iterator) are not read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import types
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ftrain.loop.callback import Callback

__all__ = ["AttributeDigests", "Named", "matched", "named"]

_LEVELS = 3
_DEEPEST = 5
_LONGEST = 1000  # elements of an attribute that is read; a longer attribute counts as data
_MOST = 10_000  # elements that are read of all attributes of a callback together
_OPAQUE = (torch.Tensor, torch.nn.Module, types.ModuleType, types.FunctionType, types.MethodType)
_CONTAINERS: tuple[type[Any], ...] = (dict, list, tuple, set, frozenset)


class AttributeDigests(NamedTuple):
    """Digests of a callback's attributes, which distinguish callbacks of the same name.

    Attributes:
        name: the name of the callback, which other callbacks may share.
        digests: digests of its attributes, the strictest first.
        whole: True if the first digest covers all attributes: none is a function, a tensor, a long list
            or other data.
    """

    name: str
    digests: tuple[str, ...]
    whole: bool

    def to_json(self) -> list[Any]:
        """Return the name and digests as a list that `json.dumps` accepts."""
        return [self.name, list(self.digests), self.whole]

    @classmethod
    def from_json(cls, content: Sequence[Any]) -> AttributeDigests:
        """Return the digests from the output of `to_json`."""
        name, digests, whole = content
        return cls(name, tuple(digests), whole)


class Named(NamedTuple):
    """Callback and the unique name under which checkpoints hold its state.

    Attributes:
        key: the name of its state in a checkpoint.
        callback: the callback.
        options: digests of its attributes.
        alone: True if no other callback of the run has its name.
        explicit: True if the callback has a `name`, False if the name is that of its class.
    """

    key: str
    callback: Callback
    options: AttributeDigests
    alone: bool
    explicit: bool


def named(callbacks: Iterable[Callback]) -> tuple[Named, ...]:
    """Return a run's callbacks under unique names: the second one called `NAME` becomes `NAME_2`."""
    callbacks = list(callbacks)
    names = [name_of(callback) for callback in callbacks]
    found: list[Named] = []
    taken: set[str] = set()
    for name, callback in zip(names, callbacks, strict=True):
        key, i = name, 2
        while key in taken or (key != name and key in names):
            key, i = f"{name}_{i}", i + 1
        taken.add(key)
        explicit = getattr(_target(callback), "name", None) is not None
        options, alone = _digests_of(name, callback), names.count(name) == 1
        found.append(Named(key, callback, options, alone, explicit))
    return tuple(found)


def matched(
    callbacks: Sequence[Named], saved: Mapping[str, Any], options: Mapping[str, AttributeDigests]
) -> dict[str, str]:
    """Return `{callback's key: key of its saved state}` for the callbacks that have a saved state.

    Args:
        callbacks: callbacks of the resumed run.
        saved: saved states by their keys.
        options: saved digests of callbacks that shared a name.

    Raises:
        ValueError: several states cannot be matched to their callbacks.
    """
    found: dict[str, str] = {}
    left = dict.fromkeys(saved)
    for each in callbacks:
        if each.alone and each.explicit and each.key in left:
            found[each.key] = each.key
            del left[each.key]
    names = dict.fromkeys(each.options.name for each in callbacks)
    for name in names:
        ours = [each for each in callbacks if each.options.name == name and each.key not in found]
        theirs = [key for key in left if _name(key, name, options, names) == name]
        found |= _matched_group(name, ours, theirs, saved, options)
    return found


def _name(
    key: str, wanted: str, options: Mapping[str, AttributeDigests], names: Collection[str]
) -> str | None:
    """Return the callback name of a saved state's key: `NAME` for the keys `NAME` and `NAME_2`."""
    if key in options:
        return options[key].name
    numbered = re.fullmatch(re.escape(wanted) + r"_\d+", key) is not None and key not in names
    return wanted if numbered else key


def name_of(callback: Callback) -> str:
    """Return a callback's `name` attribute, or the name of its class if it has none."""
    return str(getattr(callback, "name", None) or type(callback).__name__)


def _matched_group(
    name: str,
    ours: list[Named],
    theirs: list[str],
    saved: Mapping[str, Any],
    options: Mapping[str, AttributeDigests],
) -> dict[str, str]:
    """Match the callbacks of one name to the saved states of that name; return `{key: saved key}`."""
    if not ours or not theirs:
        return {}
    if len(ours) == len(theirs) == 1 and theirs[0] not in options:
        return {ours[0].key: theirs[0]}
    alike = all(saved[key] == saved[theirs[0]] for key in theirs)
    if alike and (len(theirs) >= len(ours) or saved[theirs[0]] is None):
        return {each.key: key for each, key in zip(ours, theirs, strict=False)}
    found: dict[str, str] = {}
    for level in range(_LEVELS):
        for each in list(ours):
            digest = each.options.digests[level]
            like = [other for other in ours if other.options.digests[level] == digest]
            same = [
                key for key in theirs if key in options and options[key].digests[level] == digest
            ]
            equal = not level and len(like) == len(same) and all(o.options.whole for o in like)
            if same and (len(like) == len(same) == 1 or equal):
                found[each.key] = same[0]
                ours.remove(each)
                theirs.remove(same[0])
    if len(ours) == len(theirs) == 1 and found:
        found[ours[0].key] = theirs[0]  # the only callback and the only state left
    elif ours and theirs:
        listed = ", ".join(f"callback.name = {key!r}" for key in theirs)
        states = "1 state" if len(theirs) == 1 else f"{len(theirs)} states"
        raise ValueError(
            f"callbacks: expected arguments that match each of the {len(ours)} callbacks named {name!r} "
            f"to its state in the checkpoint, got {states} without a match. "
            "Set the names of the callbacks that the saved run had, in their original order "
            f"({listed}), and give each new callback another name."
        )
    return found


def _digests_of(name: str, callback: Callback) -> AttributeDigests:
    """Return the digests of a callback's attributes."""
    target = _target(callback)
    kind = f"{type(target).__module__}.{type(target).__qualname__}"
    attributes = _attributes(target)
    public = {key: value for key, value in attributes.items() if not key.startswith("_")}
    described = [_Describer(short) for short in (False, False, True)]
    digests = []
    for level, each in zip((attributes, public, public), described, strict=True):
        each.whole = _is_plain(target)
        text = f"{kind}({each.of(level)})"
        digests.append(hashlib.sha256(text.encode()).hexdigest()[:16])
    return AttributeDigests(name, tuple(digests), described[0].whole)


def _target(callback: Any) -> Any:
    """Return the object that `adapt` wrapped; return any other callback unchanged."""
    return getattr(callback, "target", callback)


def _attributes(target: Any) -> dict[str, Any]:
    """Return the attributes of an object by name: of its `__dict__`, dataclass fields and slots."""
    found = dict(getattr(target, "__dict__", {}))
    if dataclasses.is_dataclass(target):
        names = [field.name for field in dataclasses.fields(target)]
        found |= {name: getattr(target, name) for name in names if hasattr(target, name)}
    for kind in type(target).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(target, name):
                found.setdefault(name, getattr(target, name))
    return found


def _is_plain(value: Any) -> bool:
    """Return True if an object holds no data outside its attributes.

    False for classes written in C (`functools.partial`, a file), and for iterators and custom
    containers, whose contents only their methods return.
    """
    *bases, _ = type(value).__mro__
    in_c = [isinstance(vars(base).get("__new__"), types.BuiltinFunctionType) for base in bases]
    own = any({"__iter__", "__next__", "__getitem__"} & vars(base).keys() for base in bases)
    return not any(in_c) and not own and not isinstance(value, _OPAQUE)


class _Describer:
    """Converter of attribute values to text; equal values have equal texts in every process.

    Attributes:
        whole: True if the descriptions are complete.
        short: True if only the last part of each path is included.
        left: number of elements that may still be described.
    """

    def __init__(self, short: bool) -> None:
        self.whole, self.short, self.left = True, short, _MOST

    def of(self, value: Any, depth: int = 0) -> str:
        """Return the text of a value that is nested in `depth` other values."""
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return repr(value)
        if isinstance(value, os.PathLike):
            text = os.fsdecode(value)
            return repr(os.path.basename(text) if self.short else text)
        if isinstance(value, type):
            return f"{value.__module__}.{value.__qualname__}"
        if depth < _DEEPEST:
            if isinstance(value, range):
                return repr(value)
            if isinstance(value, _CONTAINERS):
                return self._elements(value, depth, kind)
            if hasattr(value, "__dict__") and not isinstance(value, _OPAQUE):
                self.whole = self.whole and _is_plain(value)
                return f"{kind}({self.of(_attributes(value), depth + 1)})"
        self.whole = False
        return str(getattr(value, "__qualname__", kind))

    def _elements(self, value: Any, depth: int, kind: str) -> str:
        """Return the text of a container's elements; call no overridden method of the container."""
        base = next(each for each in _CONTAINERS if isinstance(value, each))
        n = base.__len__(value)
        if n > min(_LONGEST, self.left):
            self.whole = False
            return f"{kind} of {n}"
        self.left -= n
        if base is dict:
            pairs = dict.items(value)
            return str(sorted((self.of(k, depth + 1), self.of(x, depth + 1)) for k, x in pairs))
        each = [self.of(x, depth + 1) for x in base.__iter__(value)]
        return str(each if base in (list, tuple) else sorted(each))
