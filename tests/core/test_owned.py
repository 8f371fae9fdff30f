"""`Owned` detects and restores any writes to Python objects, however nested."""

from __future__ import annotations

import collections
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftrain.core._restored_objects import Owned
from tests.core.hidden import Record, Slotted


def closure(held: Any) -> Any:
    def fn(value: Any = None) -> Any:
        nonlocal held
        if value is not None:
            held = value
        return held

    return fn


def slotted(value: Any) -> Slotted:
    made = Slotted()
    made.n = value
    return made


def module(value: Any) -> nn.Module:
    made = nn.Identity()
    made.held = value
    return made


ATOMS = st.one_of(
    st.integers(0, 2), st.booleans(), st.just(0.0), st.just(-0.0), st.none(), st.text(max_size=2)
)
OBJECTS = st.recursive(
    ATOMS | st.builds(lambda n: np.arange(float(n)), st.integers(1, 3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(collections.OrderedDict),
        st.lists(inner, max_size=3).map(collections.deque),
        st.sets(st.integers(0, 5), max_size=3),
        st.tuples(inner, inner),
        st.builds(lambda a, b: SimpleNamespace(a=a, b=b), inner, inner),
        st.builds(lambda a: Record(children=[a]), inner),
        inner.map(slotted),
        inner.map(closure),
        inner.map(module),
    ),
    max_leaves=8,
)


def children(thing: Any) -> list[Any]:
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, (list, tuple, collections.deque)):
        return list(thing)
    if isinstance(thing, Slotted):
        return [thing.n]
    if callable(thing) and not isinstance(thing, nn.Module):
        return [thing()]
    return list(vars(thing).values()) if hasattr(thing, "__dict__") else []


def picture(thing: Any) -> Any:
    """Return the identity of an object and, recursively, of everything in it."""
    if isinstance(thing, np.ndarray):
        return id(thing), thing.tobytes()
    if isinstance(thing, set):
        return id(thing), frozenset(thing)
    if thing is None or isinstance(thing, (int, float, str)):
        return type(thing), repr(thing)
    keys = list(thing) if isinstance(thing, dict) else ()
    keys = list(vars(thing)) if hasattr(thing, "__dict__") and not callable(thing) else keys
    return id(thing), keys, [picture(child) for child in children(thing)]


def everything(thing: Any) -> list[Any]:
    found, queue = [], [thing]
    while queue:
        found.append(queue.pop())
        queue += children(found[-1])
    return found


def write(thing: Any, value: Any, how: int) -> None:
    """Change an object in one of the ways that its type allows."""
    if isinstance(thing, collections.OrderedDict) and len(thing) > 1 and how == 2:
        thing.move_to_end(next(iter(thing)))
    elif isinstance(thing, dict):
        if how == 0 or not thing:
            thing["new"] = value
        elif how == 1:
            thing.popitem()
        else:
            thing[next(iter(thing))] = value
    elif isinstance(thing, (list, collections.deque)):
        if how == 0 or not thing:
            thing.append(value)
        elif how == 1:
            thing.pop()
        else:
            thing[0] = value
    elif isinstance(thing, set):
        thing.symmetric_difference_update({1, 7})
    elif isinstance(thing, np.ndarray):
        thing[0] += 1
    elif isinstance(thing, Slotted):
        thing.n = value
        thing.later = value
    elif callable(thing) and not isinstance(thing, nn.Module):
        thing(0 if value is None else value)
    elif hasattr(thing, "__dict__"):
        names = [
            name for name in vars(thing) if not name.startswith("_")
        ]  # no registry of a module
        if how == 0 or not names:
            thing.fresh = value
        else:
            setattr(thing, names[-1], value)


WRITES = st.lists(st.tuples(st.integers(0, 50), OBJECTS, st.integers(0, 2)), max_size=5)


@given(root=OBJECTS, writes=WRITES)
def test_restore_undoes_any_writes_to_owned_objects(root: Any, writes: Any) -> None:
    holder = [root]
    owned = Owned([("", holder)])
    before = picture(holder)
    for place, value, how in writes:
        things = everything(holder)
        write(things[place % len(things)], value, how)
    changed = picture(holder) != before
    changes, refusals = owned.restore()
    assert picture(holder) == before
    assert bool(changes) >= changed
    assert not refusals
    assert owned.restore() == ([], [])
    assert not owned.settle()


@given(root=OBJECTS, writes=WRITES)
def test_changes_that_restore_returns_can_redo_the_undone_writes(root: Any, writes: Any) -> None:
    """A nested call relies on this: it runs on the restored model, then the changes return."""
    holder = [root]
    owned = Owned([("", holder)])
    for place, value, how in writes:
        things = everything(holder)
        write(things[place % len(things)], value, how)
    after = picture(holder)
    changes, _ = owned.restore()
    for change in changes:
        change.put(change.node, change.keys, change.values)
    assert picture(holder) == after


@given(root=OBJECTS, writes=WRITES, later=WRITES)
def test_restore_undoes_the_writes_to_owned_objects_since_the_last_settle(
    root: Any, writes: Any, later: Any
) -> None:
    holder = [root]
    owned = Owned([("", holder)])
    for place, value, how in writes:
        things = everything(holder)
        write(things[place % len(things)], value, how)
    owned.settle()
    before = picture(holder)
    for place, value, how in later:
        things = everything(holder)
        write(things[place % len(things)], value, how)
    owned.restore()
    assert picture(holder) == before


@given(root=OBJECTS, shared=OBJECTS, writes=WRITES, later=WRITES)
def test_settle_undoes_changes_of_owned_objects_except_those_reachable_from_outside(
    root: Any, shared: Any, writes: Any, later: Any
) -> None:
    """A backward pass that a caller runs between two calls makes such changes."""
    owned = Owned([("", [root]), ("", [shared])], outside=[[shared]])
    before = picture(root)
    for holder, values in ((root, writes), (shared, later)):
        for place, value, how in values:
            things = everything(holder)
            write(things[place % len(things)], value, how)
    after = picture(shared)
    owned.settle()
    assert picture(root) == before
    assert picture(shared) == after
    assert owned.restore() == ([], [])


def test_restore_undoes_writes_to_owned_cyclic_containers() -> None:
    ring: dict[str, Any] = {"tensors": [torch.zeros(2)]}
    ring["self"] = [ring]
    owned = Owned([("ring", ring)])
    ring["self"].append(1)
    ring["tensors"] = None
    changes, _ = owned.restore()
    assert len(changes) == 2
    assert ring["self"] == [ring]
    assert ring["tensors"][0].shape == (2,)


@given(st.sampled_from([SimpleNamespace, dict, collections.OrderedDict]), st.booleans())
def test_restore_undoes_the_renaming_of_a_dict_key_or_attribute_of_an_owned_object(
    kind: type, is_last: bool
) -> None:
    held = kind(first=object(), second=object())
    root = SimpleNamespace(held=held)
    entries = vars(held) if kind is SimpleNamespace else held
    before = dict(entries)
    owned = Owned([("", root)])
    name = "second" if is_last else "first"
    renamed = {f"new {key}" if key == name else key: value for key, value in before.items()}
    entries.clear()
    entries.update(renamed)
    changes, refusals = owned.restore()
    assert (len(changes), refusals) == (1, [])
    assert list(entries.items()) == list(before.items())


class Counted(Slotted):
    """Class with a property in the place of its base's slot, which has another value at each reading."""

    __slots__ = ()
    readings = itertools.count()

    def __init__(self) -> None:
        pass

    @property
    def n(self) -> int:  # type: ignore[override]
        return next(Counted.readings)


def test_recording_owned_objects_does_not_read_a_property_that_overrides_a_slot() -> None:
    root = SimpleNamespace(number=Counted(), other=1)
    owned = Owned([("", root)])
    root.other = 2
    assert len(owned.restore()[0]) == 1
    assert root.other == 1
