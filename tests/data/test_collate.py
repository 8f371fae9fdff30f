"""Test batches of samples whose arrays are Python lists, as Hugging Face datasets return them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import default_collate

import ftrain
from ftrain import data, optim, tasks
from ftrain.data._collate import collate_samples
from ftrain.testing import assert_same_bits


class Pair(NamedTuple):
    """Sample with named entries."""

    x: Any
    y: Any


ROWS = [([0.5, 1.0, -2.0], 0), ([1.5, 2.0, 3.0], 2), ([0.0, 0.25, 4.0], 1)]
X, Y = torch.tensor([x for x, _ in ROWS]), torch.tensor([y for _, y in ROWS])


@pytest.mark.parametrize(
    "sample", [lambda x, y: (x, y), lambda x, y: [x, y], lambda x, y: {"x": x, "y": y}, Pair]
)
def test_list_of_numbers_in_a_sample_is_collated_as_an_array(sample: Any) -> None:
    batch = collate_samples([sample(x, y) for x, y in ROWS])
    assert type(batch) is (list if type(sample(0, 0)) is tuple else type(sample(0, 0)))
    for found, expected in zip(
        batch.values() if type(batch) is dict else batch, (X, Y), strict=True
    ):
        assert_same_bits(found, expected)


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.int64, torch.bool]),
    st.integers(1, 4),
)
def test_nested_lists_collate_as_the_tensors_they_list(
    shape: list[int], dtype: torch.dtype, samples: int
) -> None:
    arrays = torch.arange(samples * int(np.prod(shape))).reshape(samples, *shape).to(dtype)
    nested = collate_samples([{"a": {"b": array.tolist()}} for array in arrays])
    assert_same_bits(nested["a"]["b"], arrays)


@pytest.mark.parametrize(
    "samples",
    [
        [[0.5, 1.0], [1.5, 2.0]],  # pairs of numbers
        [(0.5, 1), (1.5, 2)],
        [{"x": (0.5, 1)}, {"x": (1.5, 2)}],
        [{"words": ["a", "b"]}, {"words": ["c", "d"]}],
        [{"parts": [torch.ones(2), np.ones(3)]}] * 2,
        [OrderedDict(x=np.float32(1.0), text="a")] * 2,
        [np.ones(3), np.zeros(3)],
    ],
)
def test_samples_without_lists_of_numbers_collate_as_in_torch(samples: list[Any]) -> None:
    assert repr(collate_samples(samples)) == repr(default_collate(samples))


def test_collate_samples_does_not_modify_the_samples() -> None:
    sample = {"x": [1.0, 2.0]}
    collate_samples([sample])
    assert sample == {"x": [1.0, 2.0]}


def test_lists_of_different_lengths_raise_with_a_remedy() -> None:
    loader = data.Loader([{"x": [1.0]}, {"x": [1.0, 2.0]}], 2, shuffle=False)
    with pytest.raises(RuntimeError) as caught:
        next(iter(loader))
    assert "collate=" in caught.value.__notes__[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_list_of_dicts_of_lists_trains_a_built_in_loss(workers: int) -> None:
    loader = data.Loader([{"x": x, "y": y} for x, y in ROWS], 3, shuffle=False, workers=workers)
    stream = data.Stream([{"x": x, "y": y} for x, y in ROWS], 3)
    steps = ftrain.make_steps(lambda: nn.Linear(3, 3), tasks.cross_entropy, optim.sgd(0.1))
    state = steps.init_state(0)
    expected, _ = steps.train_step(state, {"x": X, "y": Y})
    for batches in (loader, stream):
        found, _ = steps.train_step(state, next(iter(batches)))
        assert_same_bits(found.params, expected.params)
