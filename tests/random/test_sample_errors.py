"""Test that sampling functions refuse invalid arguments with a remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ftrain.core import random


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (
            lambda key: random.uniform(key, (3,), torch.int32),
            "^uniform: expected dtype to be float32",
        ),
        (
            lambda key: random.normal(key, (3,), torch.complex64),
            "^normal: expected dtype to be float32",
        ),
        (
            lambda key: random.bernoulli(key, torch.tensor(1)),
            "^bernoulli: expected dtype to be float32",
        ),
        (lambda key: random.bernoulli(key, torch.rand(3), (2,)), r"broadcast .* shape \(2,\), got"),
        (
            lambda key: random.uniform(key, (), minval=torch.rand(2)),
            r"broadcast .* shape \(\), got",
        ),
        (lambda key: random.uniform(key, (1,), minval=torch.rand(1, 1)), r"shape \(1,\), got"),
        (
            lambda key: random.randint(key, (2,), 0, torch.tensor([1, 2, 3])),
            r"\(2,\), got .*\(3,\)",
        ),
        (lambda key: random.randint(key, (2,), 0, 3, torch.float32), "expected an integer dtype"),
        (lambda key: random.randint(key, (2,), 0, torch.tensor(3.5)), "int64"),
        (lambda key: random.permutation(key, torch.tensor(3)), "at least one axis"),
        (lambda key: random.normal(random.split(key), (2,)), r"torch\.vmap"),
    ],
)
def test_sampling_functions_refuse_invalid_arguments_with_a_remedy(draw: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw(random.key(0))


def test_integers_of_numpy_give_the_same_keys_and_draws_as_those_of_python() -> None:
    key = random.key(np.uint64(2**63 + 5))
    assert torch.equal(key, random.key(2**63 + 5))
    assert torch.equal(random.split(key, np.int64(3)), random.split(key, 3))
    assert torch.equal(random.split(key, (np.int32(2), 3)), random.split(key, (2, 3)))
    bounds = np.int64(-(2**62)), np.int64(2**62)
    drawn = random.randint(key, (4,), *bounds)
    assert torch.equal(drawn, random.randint(key, (4,), -(2**62), 2**62))


def test_randint_and_key_refuse_fractions_with_a_remedy() -> None:
    with pytest.raises(TypeError, match="randint: expected bounds that are integers .*, got 0.5"):
        random.randint(random.key(0), (2,), 0.5, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed: expected an integer, got float"):
        random.key(np.float64(1.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.complex64], ids=str)
def test_fold_in_refuses_tensors_that_are_not_integers(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"^fold_in: .* integer tensor, got {dtype}\. .*long"):
        random.fold_in(random.key(0), torch.ones(3, dtype=dtype))
