"""Test that callbacks are identified by their attributes, without reading data among them."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import pathlib
import random
from typing import Any

import numpy as np
import pytest
import torch

from ftrain.loop._callback_identity import matched, named
from ftrain.loop.callback import adapt
from ftrain.loop.callbacks import EarlyStopping
from tests.loop.callbacks.test_states import Kept


class Unread(collections.abc.Sequence[Any]):
    """A sequence that raises on any read."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        raise AssertionError("a data set was asked for its length to name a callback")

    def __getitem__(self, i: Any) -> Any:
        raise AssertionError("an element was read to name a callback")

    def __iter__(self) -> Any:
        raise AssertionError("a data set was read to name a callback")


class UnreadDict(dict[Any, Any]):
    def items(self) -> Any:
        raise AssertionError("an element was read to name a callback")

    __iter__ = keys = values = items


class UnreadIterator:
    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        raise AssertionError("an element was read to name a callback")


@pytest.mark.parametrize(
    "data",
    [
        Unread(2000),
        [Unread(2000)],
        {"held out": Unread(2000)},
        UnreadIterator(),
        iter([1, 2]),
        map(Unread(2).__getitem__, [0]),
        list(range(2000)),
        tuple(range(2000)),
        set(range(2000)),
        dict.fromkeys(range(2000)),
        [[0] * 100] * 100,
        torch.zeros(3),
        np.zeros(3),
        functools.partial(print, 1),
        random.Random(0),
    ],
    ids=lambda data: type(data).__name__,
)
def test_identifying_a_callback_does_not_read_the_data_that_it_holds(data: Any) -> None:
    for each in named([Kept(data=data), Kept(data=data), Kept(data=data, n=1)]):
        assert not each.options.whole
    digests = [each.options.digests for each in named([Kept(data=data), Kept(data=data, n=1)])]
    assert digests[0] != digests[1]


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "option",
    [
        list(range(900)),
        UnreadDict(a=1),
        range(10**6),
        collections.OrderedDict(a=1),
        Colour.RED,
        {"a": ([1], "b", None, pathlib.Path("x"))},
    ],
    ids=lambda option: type(option).__name__,
)
def test_digests_of_a_callback_cover_plain_attribute_values_completely(option: Any) -> None:
    (each,) = named([Kept(option=option)])
    assert each.options.whole
    (each,) = named([EarlyStopping(3)])
    assert each.options.whole


def test_callbacks_that_differ_only_in_a_functools_partial_are_not_matched_to_states() -> None:
    """The attributes of `functools.partial` do not identify the function."""
    pair = [Kept(f=functools.partial(print, i)) for i in (1, 2)]
    kept = {each.key: each.options for each in named(pair)}
    with pytest.raises(ValueError, match="states without a match"):
        matched(named(pair[::-1]), {"Kept": 1, "Kept_2": 2}, kept)


def test_key_of_a_callback_with_an_unset_dataclass_field_is_its_class_name_and_a_number() -> None:
    @dataclasses.dataclass
    class Late:
        filled: Any = dataclasses.field(init=False)

        def on_train_begin(self, event: Any) -> None: ...

    assert [each.key for each in named([adapt(Late()), adapt(Late())])] == ["Late", "Late_2"]
