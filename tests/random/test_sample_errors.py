"""Test that sampling functions refuse invalid arguments with a remedy."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ftrain import testing
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


SHAPED: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    "bits": random.bits,
    "uniform": random.uniform,
    "normal": random.normal,
    "bernoulli": lambda key, shape: random.bernoulli(key, 0.5, shape),
    "randint": lambda key, shape: random.randint(key, shape, 0, 5),
    "exponential": random.exponential,
    "laplace": random.laplace,
    "gumbel": random.gumbel,
    "rademacher": random.rademacher,
    "truncated_normal": lambda key, shape: random.truncated_normal(key, -1.0, 1.0, shape),
    "gamma": lambda key, shape: random.gamma(key, 2.0, shape),
    "beta": lambda key, shape: random.beta(key, 2.0, 1.0, shape),
    "dirichlet": lambda key, shape: random.dirichlet(key, torch.ones(3), shape),
    "poisson": lambda key, shape: random.poisson(key, 2.0, shape),
    "categorical": lambda key, shape: random.categorical(
        key, torch.zeros(9), shape=shape, replace=False
    ),
    "choice": lambda key, shape: random.choice(key, 9, shape, replace=False),
    "multivariate_normal": lambda key, shape: random.multivariate_normal(
        key, torch.zeros(2), torch.eye(2), shape
    ),
    "orthogonal": lambda key, shape: random.orthogonal(key, 2, shape),
    "ball": lambda key, shape: random.ball(key, 2, shape=shape),
}


def test_every_sampler_with_a_shape_argument_is_tested_in_this_file() -> None:
    samplers = [getattr(random, name) for name in random.__all__]
    named = {f.__name__ for f in samplers if "shape" in inspect.signature(f).parameters}
    assert named == set(SHAPED)


@pytest.mark.parametrize("name", SHAPED)
def test_samplers_refuse_shapes_that_are_not_counts_by_their_name(name: str) -> None:
    key, draw = random.key(0), SHAPED[name]
    for shape in (-1, (-1,), [2, -3]):
        with pytest.raises(ValueError, match=f"^{name}: expected shape .* >= 0, got .*-"):
            draw(key, shape)
    for other in (1.5, (2, 0.5), "ab", np.array([2, 3])):
        with pytest.raises(TypeError, match=f"^{name}: expected shape to be an integer or a tuple"):
            draw(key, other)
    testing.assert_same_bits(draw(key, (np.int64(2), 3)), draw(key, (2, 3)))


def test_parameters_beyond_the_range_of_the_dtype_are_refused() -> None:
    key = random.key(0)
    for draw in (
        lambda x: random.truncated_normal(key, -x, 1.0),
        lambda x: random.truncated_normal(key, -1.0, x),
        lambda x: random.gamma(key, x),
        lambda x: random.poisson(key, x),
    ):
        for x in (1e300, 10**400):
            with pytest.raises(ValueError, match="within the range of torch.float32.*math.inf"):
                draw(x)
    with pytest.raises(TypeError, match="gamma: expected numbers or tensors .* got 'a'"):
        random.gamma(key, "a")  # type: ignore[arg-type]
    wide = random.truncated_normal(key, -1.0, 1e300, dtype=torch.float64)
    testing.assert_same_bits(
        wide, random.truncated_normal(key, -1.0, math.inf, dtype=torch.float64)
    )


def test_permutation_of_a_negative_number_raises_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="permutation: expected x to be an int >= 0, got -3"):
        random.permutation(random.key(0), -3)
