"""Test fingerprints: each notices a change, and restores the contents or says why it cannot."""

from __future__ import annotations

import array
import itertools
import random
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftrain.core._fingerprints import Fingerprint, _same, fingerprints_of


def fingerprint(**found: Any) -> Fingerprint:
    """Return the fingerprint of one object, found as one of the kinds that `reach` tells apart."""
    kinds: dict[str, Any] = dict.fromkeys(
        ("containers", "buffers", "scripted", "generators", "iterators"), ()
    )
    (one,) = fingerprints_of(types.SimpleNamespace(**kinds | found))  # type: ignore[arg-type]
    return one


def _reshape(node: Any) -> None:
    node.shape = (3, 2)


FIRST, OTHER = [1], [1]  # equal, but two objects

CONTENTS: dict[str, tuple[str, Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "set": ("containers", lambda: {1, 2}, lambda node: node.add(3), set),
    "bytearray": ("buffers", lambda: bytearray(b"ab"), lambda node: node.extend(b"c"), bytes),
    "array": ("buffers", lambda: array.array("d", [1.0, 2.0]), lambda node: node.pop(), list),
    "numpy": (
        "buffers", lambda: np.arange(6.0).reshape(2, 3), lambda node: node.fill(7), np.ndarray.tolist,
    ),
    "numpy of NaN": (
        "buffers", lambda: np.full(2, np.nan), lambda node: node.fill(0), lambda node: str(node),
    ),
    "numpy, reshaped": ("buffers", lambda: np.arange(6).reshape(2, 3), _reshape, np.ndarray.tolist),
    "numpy of objects": (
        "buffers",
        lambda: np.array([FIRST, "a", None], dtype=object),
        lambda node: node.__setitem__(0, OTHER),
        lambda node: [*map(id, node)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_changed_contents_of_an_object_are_noticed_and_restored(name: str) -> None:
    kind, build, change, contents = CONTENTS[name]
    node = build()
    before = contents(node)
    one = fingerprint(**{kind: [node]})
    assert one.refusal is None
    assert one.node is node
    assert one.same()
    change(node)
    changed = contents(node)
    assert not one.same()
    undone = one.restore()
    assert one.same()
    assert contents(node) == before
    assert undone is not None
    undone.put(undone.node, undone.keys, undone.values)
    assert contents(node) == changed


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch": (torch.Generator, lambda node: torch.rand(3, generator=node).tolist()),
    "random": (random.Random, lambda node: node.random()),
    "RandomState": (np.random.RandomState, lambda node: node.rand()),
    "Generator": (np.random.default_rng, lambda node: node.random()),
    "BitGenerator": (np.random.PCG64, lambda node: node.random_raw()),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_random_generator_that_a_call_advanced_is_refused_and_set_back(name: str) -> None:
    build, draw = GENERATORS[name]
    node = build()
    one = fingerprint(generators=[node])
    assert one.refusal is not None
    assert "random generator" in one.refusal
    assert one.same()
    first = draw(node)
    assert not one.same()
    assert one.restore() is None
    assert one.same()
    assert draw(node) == first


def _counting() -> Iterator[int]:
    yield from (1, 2, 3)


ITERATORS: dict[str, Callable[[], Any]] = {
    "list": lambda: iter([1, 2]),
    "generator": _counting,
    "count": lambda: itertools.count(3),
    "range": lambda: iter(range(4)),
}


@pytest.mark.parametrize("name", ITERATORS)
def test_iterator_that_a_call_advanced_is_refused(name: str) -> None:
    node = ITERATORS[name]()
    one = fingerprint(iterators=[node])
    assert one.refusal is not None
    assert one.same()
    next(node)
    assert not one.same()
    assert one.restore() is None


def test_fingerprint_of_a_file_changes_when_the_file_is_read_but_not_when_it_is_closed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data"
    path.write_text("abc")
    with path.open() as file:
        one = fingerprint(iterators=[file])
        assert one.same()
        file.read(1)
        assert not one.same()
    assert fingerprint(iterators=[file]).same()


def test_empty_sets_lists_and_dicts_have_no_fingerprint() -> None:
    found = types.SimpleNamespace(
        containers=[set(), [1], {}], buffers=[], scripted=[], generators=[], iterators=[]
    )
    assert fingerprints_of(found) == []  # type: ignore[arg-type]


X = torch.zeros(2)


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        (float("nan"), float("nan"), True),
        (1, True, False),
        (1, 1.0, False),
        ("a", "a", True),
        ("a", "b", False),
        (X, X, True),
        (X, X.clone(), False),
        ([1, X], [1, X], True),
        ([1, X], [1, X.clone()], False),
        ([1], [1, 2], False),
        ((1, 2), [1, 2], False),
        ({"a": X}, {"a": X}, True),
        ({"a": X}, {"b": X}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),
        ({"a": 1}, {"a": 2}, False),
        (None, None, True),
    ],
)
def test_torchscript_numbers_are_compared_by_type_and_text_and_tensors_by_identity(
    first: Any, second: Any, is_same: bool
) -> None:
    assert _same(first, second) is is_same
