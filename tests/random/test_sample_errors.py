"""Test that sampling functions refuse invalid arguments with a remedy."""

from __future__ import annotations

from typing import Any

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
